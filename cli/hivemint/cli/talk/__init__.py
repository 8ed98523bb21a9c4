"""Answers and talks on a terminal: what is asked, what comes back, what it cost."""

"""The databases: how one is opened and brought up to date, its tables, statements that are compiled once."""

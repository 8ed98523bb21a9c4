"""From receipts to credits: what is worth settling, and how it is paid out by the chain."""

"""A client's session from its opening to its last signed receipt."""

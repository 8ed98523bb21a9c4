"""Paid and donated sessions at nodes: finding a route, opening, signing, checking, paying, closing."""

"""Attacks: what a coalition of servers can reconstruct from the shares it receives."""

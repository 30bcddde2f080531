"""What coalitions of servers reconstruct: attacks, views, and what an audit reports."""

"""Coded shares: integer features, shared over small primes, and polynomial networks that servers evaluate on shares.

A run whose config has `[sharing] kind = "coded"`. Any `colluding` servers together see uniform noise; the device
decodes exactly the integers that the trained network has. `privdfs.coding` holds the arithmetic of shares and answers,
`network` the networks as training sees them, `rounds` the same networks as plain integers, `bounds` what no input can
exceed.
"""

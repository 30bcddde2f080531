"""Rival defences in the same trainer: one server, the same head and branch networks, another way to hide the image.

They are here so that an audit compares like with like. Each is a small re-implementation of a published method from
its description; every docstring says where it departs. Heads stay float: no rival has a stage that takes the head to
int8, which favours the rivals if anything. What travels is int8 where the method sends a deterministic feature, with
one scale for the whole feature, and float32 where it sends noise.

`privdfs-train` runs a config that has a section [defence]; `load_rival` opens the result.
"""

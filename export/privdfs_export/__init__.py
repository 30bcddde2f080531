"""The release builder of PrivDFS: ONNX graphs, INT8, Triton model repositories, and local servers for a release.

Importing this package loads neither torch nor onnx; its modules load what they need.
"""

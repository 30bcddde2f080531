"""Training of PrivDFS systems: models, masks, losses, data, the training loop, attacks.

`privdfs-train CONFIG` runs the stages of one typed TOML config; `privdfs_training.checkpoint.load_system` opens what
it made, and `privdfs_training.coded.system.load_coded` what it made of a coded config.
"""

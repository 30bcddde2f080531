"""`torchrun --nproc-per-node=K -m privdfs_training CONFIG`: what privdfs-train does, in K processes."""

import sys

from privdfs_training.cli import main

sys.exit(main())

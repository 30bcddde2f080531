"""`python -m privdfs_export.serve`: the command `privdfs-serve`."""

import sys

from privdfs_export.serve.cli import main

sys.exit(main())

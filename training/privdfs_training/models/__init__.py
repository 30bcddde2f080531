"""Networks: backbones, the compact head, branches, fusion, and the system that joins them."""

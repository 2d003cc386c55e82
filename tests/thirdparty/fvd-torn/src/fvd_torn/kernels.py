import fvd_torn_native_kernels  # of no distribution, and pyproject.toml does not ask for one

BLOCK_SIZE = fvd_torn_native_kernels.BLOCK_SIZE

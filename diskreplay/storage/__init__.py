"""The only floor that imports zarr and lmdb: layout, durable writes, segments, index, hot reads, verification."""

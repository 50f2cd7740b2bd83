"""The file format of a bank: LMDB, records, index columns."""

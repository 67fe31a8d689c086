"""Rows that are stored without a look at their ids, as by writers that know nothing of them."""

import lance
import pyarrow as pa


def append_rows(snapshot, batch):
    """Append a batch to the index that a snapshot was taken of."""
    lance.write_dataset(pa.Table.from_batches([batch]), snapshot.path, mode="append")

"""Make an index and add documents, in commits that store no id twice.

Rows that are new in the last version are appended by a process that has the lock of the folder,
which reads nothing of what is stored. Lance puts them behind whatever other processes commit, so no
row of theirs is lost. The files are written first; if another process, which does not see the lock,
has committed by then, they are not used. One that comes in the moment between that look and the
commit is noticed afterwards, as the version is not the very next one. If it stored some of the same
documents, the rows are deleted again, see `clara.index.doubles`, and the caller compares them once
more. Until then, or for good if the process is killed in that moment, of an id that is there twice
the first row counts, and a document may have rows of both.

Where there are no locks, or another process keeps the lock, `merge_insert` inserts the rows: from
format 2 on, `id` is Lance's unenforced primary key. Lance then compares the ids of all files, and
those of commits that others made since, and does the insertion again if it has to. One that finds
an id is refused as a whole. In format 1, there is no writing without the lock.

Documents are replaced by a `merge_insert` that writes their rows anew and deletes those that they
have no more, and deleted by one that writes nothing. Lance does them again where another commit
came first that deleted some of the same rows, inserted some of the same ids or rewrote the files.
What a `merge_insert` writes can be looked at only after its commit, as an uncommitted one does not
keep the ids that Lance compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import lance
import pyarrow as pa

from clara.index.doubles import (
    PATIENCE,
    RETRIES,
    UnseenError,
    attempts,
    field_numbers,
    kept,
    of_documents,
    quoted,
    remove_doubles,
)
from clara.index.errors import DuplicateIdError, MemoryIndexError, failures_in
from clara.index.header import Header
from clara.index.joining import holds, remove_files, require_whole, written
from clara.index.seals import require_sealed
from clara.index.snapshot import Snapshot, file_of

DATA_VERSION: Final = "2.1"
"""The version of Lance's files."""

_TRIES = 20
_OVERTAKEN = ("Incompatible transaction", "Retryable commit conflict")
_CONTENDED = "Too many concurrent writers"


def write_empty(header: Header, folder: str) -> None:
    """An index without documents."""
    lance.write_dataset(
        header.schema.empty_table(), folder, mode="create", data_storage_version=DATA_VERSION
    )


def require_changeable(header: Header, path: str) -> None:
    """Refuse to replace and delete in an index of format 1, which has no ids that Lance compares.

    Raises:
        MemoryIndexError: names the command that makes such an index.
    """
    if header.format_version < 2:
        raise MemoryIndexError(
            f"{path}: an index of format 1 only takes new documents; run 'clara index upgrade "
            f"--model MODEL {path}'"
        )


class Appended(NamedTuple):
    """Rows that were put behind those of one version by the next one.

    Attributes:
        file: the name of the last file of the later version. Names are random: another one of the
            same number has another.
        batch: their small columns.
    """

    identity: str
    before: int
    version: int
    file: str
    batch: pa.RecordBatch


class Writer:
    """Commits of one handle, one after the other.

    The writer keeps the dataset from one commit to the next, and with it what Lance has learnt
    about the files: of a thousand files, a `merge_insert` takes a tenth of the time then.

    Attributes:
        appended: what was appended last, if nothing came in between.
    """

    def __init__(self) -> None:
        self.appended: Appended | None = None
        self._identity: str | None = None
        self._dataset: Any = None  # no reader has it: Lance changes the one that it inserts to

    def commit(self, snapshot: Snapshot, batch: pa.RecordBatch, *, alone: bool) -> bool:
        """Store rows behind those of the last commit, all of them or none.

        Args:
            snapshot: the caller found none of the ids in it, neither of rows nor of documents.
            alone: the caller has the lock; always so in format 1.

        Returns:
            False if nothing was stored since the index was upgraded or replaced after `snapshot`,
            also while the rows were written, or another process has added one of the documents.

        Raises:
            MemoryIndexError: writing failed, or another process has added one of the ids.
        """
        if snapshot.header.format_version < 2:
            latest = Snapshot.latest(snapshot.path)
            if not _is_of(snapshot, latest):
                return False
            with failures_in(latest.path, "writing"):
                _committed(latest.dataset, written(latest.path, latest.dataset, batch))
            return True
        unique = True

        def insert(dataset: Any) -> None:
            nonlocal unique
            if alone and (found := self._appended(snapshot, batch)) is not None:
                unique = found
                return
            builder = dataset.merge_insert("id").when_matched_fail().when_not_matched_insert_all()
            table = pa.Table.from_batches([batch])
            stored = _stored(snapshot.path, dataset, _again(builder), table)["num_inserted_rows"]
            if stored != batch.num_rows:
                raise MemoryIndexError(
                    f"{snapshot.path}: {stored} of {batch.num_rows} documents were stored, the ids "
                    "of the others are in the index already"
                )
            unique = kept(snapshot, dataset, batch)

        return self._done(snapshot, insert) and unique

    def replace(self, snapshot: Snapshot, batch: pa.RecordBatch, *, new: bool, alone: bool) -> bool:
        """Store rows in place of all rows of their documents, in one commit.

        Args:
            snapshot: no id in the batch is that of another document's row there.
            new: it has none of the documents.
            alone: the caller has the lock.

        Returns:
            False if nothing was stored since the index was upgraded or replaced after `snapshot`,
            or another process has added a document that was new.

        Raises:
            DuplicateIdError: another process has added a document whose row has an id of these.
            MemoryIndexError: writing failed.
        """
        # Lance would try again by itself, and replace rows of other documents that came meanwhile.
        table = pa.Table.from_batches([batch])
        mine = of_documents(batch)
        unique = True

        def replace(dataset: Any) -> None:
            nonlocal unique
            if new and alone and (found := self._appended(snapshot, batch)) is not None:
                unique = found
                return
            checked = snapshot.version
            for _ in attempts():
                before = dataset.version
                if before != checked:
                    _refuse_taken(dataset, table)
                builder = dataset.merge_insert("id").when_matched_update_all()
                builder = builder.when_not_matched_insert_all()
                builder = builder.when_not_matched_by_source_delete(mine).conflict_retries(0)
                try:
                    counts = _stored(snapshot.path, dataset, builder, table)
                except OSError as error:
                    if _CONTENDED not in str(error):
                        raise
                # Lance compares ids of rows. A document that two processes insert at the same
                # time, one as a whole and one in chunks, would be there twice.
                else:
                    if counts["num_inserted_rows"] + counts["num_updated_rows"] > len(table):
                        _remove_doubles(snapshot.path, dataset, table)
                    if dataset.version == before + 1 or dataset.count_rows(mine) == len(table):
                        return
                dataset.checkout_latest()
                if not _is_still_of(snapshot, dataset):  # `_done` looks again
                    raise MemoryIndexError(f"{snapshot.path}: was replaced while it was written")
            raise MemoryIndexError(
                f"{snapshot.path}: other processes store the same documents all the time"
            )

        return self._done(snapshot, replace) and unique

    def delete(self, snapshot: Snapshot, document_ids: Sequence[str]) -> bool:
        """Delete all rows of documents, in one commit; returns and raises as `replace` does."""
        names = pa.table({"document_id": pa.array(document_ids, pa.large_string())})
        return self._done(
            snapshot,
            lambda dataset: _execute(
                _again(dataset.merge_insert("document_id").when_matched_delete()), names
            ),
        )

    def _appended(self, snapshot: Snapshot, batch: pa.RecordBatch) -> bool | None:
        """Append rows that are new in the last version.

        Returns:
            None if `snapshot` is no longer that before they are committed, and False if it shows
            only afterwards that others came first: the rows were deleted again.
        """
        dataset = self._dataset
        if dataset.version != snapshot.version:
            return None
        fields = field_numbers(dataset)
        files = written(snapshot.path, dataset, batch)
        if dataset.latest_version != snapshot.version:
            remove_files(snapshot.path, files)  # which no commit knows
            dataset.checkout_latest()
            return None
        try:
            self._dataset = _committed(dataset, files)
        except Exception:
            # What failed may have come after the commit. If not, `clean_up` removes the files:
            # a version in between might have them.
            with suppress(Exception):
                dataset.checkout_latest()
            if not holds(dataset, files):
                raise
        if not kept(snapshot, self._dataset, batch, fields):
            return False
        if self._dataset.version == snapshot.version + 1:
            self.appended = Appended(
                snapshot.identity,
                snapshot.version,
                self._dataset.version,
                file_of(self._dataset.get_fragments()[-1]),
                batch.select(snapshot.header.head_columns),
            )
        return True

    def _done(self, snapshot: Snapshot, write: Callable[[Any], object]) -> bool:
        """Write to Lance's dataset of the last commit.

        Returns:
            False if nothing was written since the index was upgraded or replaced after `snapshot`,
            also meanwhile.
        """
        for _ in range(_TRIES):
            latest = snapshot if snapshot.is_latest else Snapshot.latest(snapshot.path)
            if not _is_of(snapshot, latest):
                return False
            try:
                with failures_in(snapshot.path, "writing"):
                    if self._identity != latest.identity:
                        # Not the dataset of a snapshot, which stays at its version.
                        self._identity, self._dataset = latest.identity, lance.dataset(latest.path)
                    self._dataset.checkout_latest()
                    if not _is_still_of(snapshot, self._dataset):
                        continue  # another model's version came since it was looked at
                    write(self._dataset)
                    fragments = self._dataset.get_fragments()
                require_sealed(snapshot.path, self._dataset.version, fragments)
                return True
            except UnseenError:
                raise
            except MemoryIndexError as error:
                # Lance refuses rows of the earlier format, and those that an upgrade overtook. It
                # does not try again what was overtaken by a version that was restored.
                others = any(each in str(error) for each in _OVERTAKEN) or not _is_of(
                    snapshot, Snapshot.latest(snapshot.path)
                )
                if not others:
                    raise
        raise MemoryIndexError(f"{snapshot.path}: others restore versions of it all the time")


def _refuse_taken(dataset: Any, table: pa.Table) -> None:
    """Refuse rows that have the ids of other documents' rows.

    Raises:
        DuplicateIdError: some have.
    """
    owners = dict(zip(table["id"].to_pylist(), table["document_id"].to_pylist(), strict=True))
    stored = set(owners.values())
    there = dataset.to_table(columns=["id", "document_id"], filter=f"id IN ({quoted(owners)})")
    taken = [
        name
        for name, owner in zip(*(there[name].to_pylist() for name in ("id", "document_id")))
        if owner not in stored
    ]
    if taken:
        raise DuplicateIdError(taken)


def _remove_doubles(path: str, dataset: Any, table: pa.Table) -> None:
    """Have each row once: Lance updates all rows of an id, and a killed writer may have left two.

    Raises:
        UnseenError: that was not possible. The rows are stored.
    """
    for _ in attempts(_TRIES):
        with suppress(Exception):  # another process changes them; what it leaves is looked at
            remove_doubles(dataset, table["id"].to_pylist())
            return
        dataset.checkout_latest()
    raise UnseenError(
        f"{path}: the documents were replaced, but rows of them that are there twice remain"
    )


def _committed(dataset: Any, files: list[Any]) -> Any:
    """Commit files behind those of the last version; the dataset afterwards."""
    operation = lance.LanceOperation.Append(files)
    return lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)


def _again(builder: Any) -> Any:
    """A `merge_insert` that Lance tries again where other commits overtake it."""
    return builder.conflict_retries(RETRIES).retry_timeout(PATIENCE)


def _execute(builder: Any, table: pa.Table) -> dict[str, int]:
    """Commit a `merge_insert`, and what Lance counts of it."""
    counts: dict[str, int] = builder.execute(table)
    return counts


def _stored(path: str, dataset: Any, builder: Any, table: pa.Table) -> dict[str, int]:
    """Commit a `merge_insert`, and what Lance counts of it, if its files are whole.

    Raises:
        UnseenError: a file was cut off, and the version that has it is there; names the one before.
        Exception: what Lance raises.
    """
    last = max(dataset.fragment_ids(), default=-1)
    counts = _execute(builder, table)
    new = [dataset.get_fragment(number) for number in dataset.fragment_ids() if number > last]
    try:
        with suppress(FileNotFoundError):  # others have joined them since, and cleaned up
            require_whole(path, [fragment.metadata for fragment in new])
    except MemoryIndexError as error:
        version = dataset.version
        raise UnseenError(
            f"{error} Version {version} cannot be read whole: make room and run 'clara index "
            f"restore {path} {version - 1}'"
        ) from error
    return counts


def _is_of(snapshot: Snapshot, latest: Snapshot) -> bool:
    """Whether the last commit is of the same index in the same format."""
    return latest.header == snapshot.header and latest.identity == snapshot.identity


def _is_still_of(snapshot: Snapshot, dataset: Any) -> bool:
    """Whether the version that Lance's dataset stands at has the header of a snapshot.

    Columns do not tell models apart, so Lance would store memory of one in an index of the other.
    """
    return Header.from_schema(dataset.schema, snapshot.path) == snapshot.header

"""What a disk may hold after a crash: a recorder below the file-system operations, and the states that follow.

    with recording(home) as recording: ...           # what runs there goes through os.*, and is noted
    for state in crash_states(recording, cuts): state.put(folder)

A name (created, renamed, removed) is on the disk for certain once its directory was synced, and data once its file was.
Until then each operation may be there or not, whatever came before it, and a write may be cut at any byte, or be zeros.
A rename that was not synced may have left both names.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

FOR_A_DELAY = ("attempts.txt", ".attempts.txt.new", "subscriptions.json", ".subscriptions.json.new")
"""Written without a sync, by intent: any content of them, and none, is a number of failed attempts, or some filters."""
PENDING_MAX = 10  # names between two syncs: the states are exponential in it

Node = bytes | str | None
"""Content of a file, target of a symbolic link, or a directory."""
Tree = dict[str, Node]


@dataclass(frozen=True, slots=True)
class Create:
    path: str
    inode: int


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    target: str


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class Remove:
    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    source: str
    path: str
    node: int | str
    """The inode, or the target of a link."""


@dataclass(frozen=True, slots=True)
class Write:
    inode: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    inode: int


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Something outside of the disk, which a crash does not undo: what the server knows from here on."""

    state: Any


Name = Create | Link | MakeDirectory | Remove | Rename
Operation = Name | Write | Sync | SyncDirectory | Elsewhere


@dataclass(slots=True)
class Recording:
    root: Path
    before: Any = None
    """The state outside of the disk at the start."""
    names: dict[str, int | str | None] = field(default_factory=dict)
    """At the start: inode, target of a link, or None for a directory."""
    data: dict[int, bytes] = field(default_factory=dict)
    """At the start."""
    operations: list[Operation] = field(default_factory=list)
    _inodes: Iterator[int] = field(default_factory=itertools.count)
    _now: dict[str, int | str | None] = field(default_factory=dict)
    _descriptors: dict[int, int | str] = field(default_factory=dict)

    def begin(self) -> None:
        for path, node in tree_of(self.root).items():
            if isinstance(node, bytes):
                inode = next(self._inodes)
                self.names[path], self.data[inode] = inode, node
            else:
                self.names[path] = node
        self._now = dict(self.names)

    def within(self, path: Any) -> str | None:
        """`path` below the root; None if it is not."""
        named = Path(path)
        if named.name in FOR_A_DELAY:
            return None
        text = str(named.parent.resolve() / named.name)
        root = str(self.root)
        if text == root:
            return ""
        return text.removeprefix(root + "/") if text.startswith(root + "/") else None

    def opened(self, path: Any, flags: int, descriptor: int, existed: bool) -> None:
        name = self.within(path)
        if name is None:
            return
        assert not flags & os.O_TRUNC, f"{name} is emptied in place"
        if flags & os.O_DIRECTORY or self._now.get(name, 0) is None:
            self._descriptors[descriptor] = name
            return
        if not existed:
            self._now[name] = next(self._inodes)
            self._note(Create(name, self._inode(name)))
        self._descriptors[descriptor] = self._inode(name)

    def written(self, descriptor: int, data: bytes) -> None:
        inode = self._descriptors.get(descriptor)
        if isinstance(inode, int):
            self._note(Write(inode, data))

    def synced(self, descriptor: int) -> None:
        match self._descriptors.get(descriptor):
            case int() as inode:
                self._note(Sync(inode))
            case str() as directory:
                self._note(SyncDirectory(directory))

    def closed(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)

    def renamed(self, source: Any, target: Any) -> None:
        before, after = self.within(source), self.within(target)
        if before is not None and after is not None:
            node = self._now.pop(before)
            assert node is not None, "a directory is renamed"
            assert _folder(before) == _folder(after), "a rename from one directory to another"
            self._now[after] = node
            self._note(Rename(before, after, node))

    def linked(self, target: Any, path: Any) -> None:
        if (name := self.within(path)) is not None:
            self._now[name] = os.fspath(target)
            self._note(Link(name, os.fspath(target)))

    def made(self, path: Any) -> None:
        if (name := self.within(path)) is not None:
            self._now[name] = None
            self._note(MakeDirectory(name))

    def removed(self, path: Any) -> None:
        if (name := self.within(path)) is not None:
            self._now.pop(name)
            self._note(Remove(name))

    def elsewhere(self, state: Any) -> None:
        self._note(Elsewhere(state))

    def _inode(self, name: str) -> int:
        inode = self._now[name]
        assert isinstance(inode, int)
        return inode

    def _note(self, operation: Operation) -> None:
        self.operations.append(operation)


@contextlib.contextmanager
def recording(root: Path, elsewhere: Any = None) -> Iterator[Recording]:
    """Note what changes below `root` while the block runs. Syncs are noted and not done. `elsewhere` is the state
    outside of the disk at the start; note its changes with `Recording.elsewhere`.

    What is there at the end must be what the notes amount to: nothing has changed it behind the recorder's back.
    """
    record = Recording(root.resolve(), elsewhere)
    record.begin()
    real: dict[str, Callable[..., Any]] = {
        name: getattr(os, name)
        for name in ("open", "write", "close", "rename", "replace", "symlink", "unlink", "remove", "mkdir", "rmdir")
    }

    def open_(path: Any, flags: int, *given: Any, **more: Any) -> int:
        existed = os.path.lexists(path)
        descriptor: int = real["open"](path, flags, *given, **more)
        record.opened(path, flags, descriptor, existed)
        return descriptor

    def write(descriptor: int, data: Any) -> int:
        count: int = real["write"](descriptor, data)
        record.written(descriptor, bytes(data)[:count])
        return count

    def close(descriptor: int) -> None:
        record.closed(descriptor)
        real["close"](descriptor)

    def then(name: str, note: Any) -> Callable[..., None]:
        def call(*given: Any, **more: Any) -> None:
            real[name](*given, **more)
            note(*given[:2] if name in ("rename", "replace", "symlink") else given[:1])

        return call

    patched: dict[str, Any] = {
        "open": open_,
        "write": write,
        "close": close,
        "fsync": record.synced,
        "fdatasync": record.synced,
        "rename": then("rename", record.renamed),
        "replace": then("replace", record.renamed),
        "symlink": then("symlink", record.linked),
        "unlink": then("unlink", record.removed),
        "remove": then("remove", record.removed),
        "mkdir": then("mkdir", record.made),
        "rmdir": then("rmdir", record.removed),
    }
    with mock.patch.multiple(os, **patched):
        yield record
    final = _Disk(dict(record.names), dict(record.data))
    for operation in record.operations:
        final.apply(operation)
    assert final.tree() == tree_of(record.root), "something has changed the disk behind the recorder's back"


@dataclass(frozen=True, slots=True)
class CrashState:
    after: int
    """How many of the operations had been begun."""
    tree: Tree
    elsewhere: Any
    """The state outside of the disk by then."""

    def put(self, folder: Path) -> None:
        """Make an absent or empty `folder` hold this state."""
        put_tree(folder, self.tree)


Cuts = Callable[[int], Iterator[int]]
"""Where a write of this many bytes may be cut: from 0, nothing of it, to all of it."""


def many_bytes(length: int) -> Iterator[int]:
    """A file that is cut within its bytes has another hash than was written down for it, at whichever byte."""
    return iter(sorted({*range(0, length, 16), *some_bytes(length)}))


def some_bytes(length: int) -> Iterator[int]:
    return iter(sorted({0, 1, length // 2, max(0, length - 1), length}))


def crash_states(record: Recording, cuts: Cuts) -> Iterator[CrashState]:
    """Each disk state that a crash in the middle of `record` may leave, once."""
    disk = _Disk(dict(record.names), dict(record.data))
    names: list[Name] = []
    writes: list[Write] = []
    elsewhere = record.before
    seen: set[object] = set()
    for after in range(len(record.operations) + 1):
        assert len(names) <= PENDING_MAX, f"{len(names)} names are not synced: {names}"
        for tree in _trees(disk, names, writes, cuts):
            key = (id(elsewhere), hash(frozenset(tree.items())))
            if key not in seen:
                seen.add(key)
                yield CrashState(after, tree, elsewhere)
        if after == len(record.operations):
            return
        match record.operations[after]:
            case Elsewhere(state):
                elsewhere = state
            case Write() as write:
                writes.append(write)
            case Sync(inode):
                for write in [each for each in writes if each.inode == inode]:
                    disk.apply(write)
                writes = [each for each in writes if each.inode != inode]
            case SyncDirectory(path):
                for name in [each for each in names if _folder(each.path) == path]:
                    disk.apply(name)
                names = [each for each in names if _folder(each.path) != path]
            case name:
                names.append(name)


def _trees(disk: "_Disk", names: list[Name], writes: list[Write], cuts: Cuts) -> Iterator[Tree]:
    options = [("no", "yes", "both") if isinstance(name, Rename) else ("no", "yes") for name in names]
    torn = [[*(write.data[:cut] for cut in cuts(len(write.data))), bytes(len(write.data))] for write in writes]
    for contents in itertools.product(*torn):
        for chosen in itertools.product(*options):
            crashed = _Disk(dict(disk.names), dict(disk.data))
            for write, content in zip(writes, contents, strict=True):
                crashed.apply(Write(write.inode, content))
            for name, choice in zip(names, chosen, strict=True):
                if choice != "no":
                    crashed.apply(name)
                if choice == "both" and isinstance(name, Rename):
                    crashed.names[name.source] = name.node
            yield crashed.tree()


@dataclass(slots=True)
class _Disk:
    names: dict[str, int | str | None]
    data: dict[int, bytes]

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create(path, inode):
                self.names[path] = inode
            case Link(path, target):
                self.names[path] = target
            case MakeDirectory(path):
                self.names[path] = None
            case Remove(path):
                self.names.pop(path, None)
            case Rename(source, path, node):
                self.names.pop(source, None)
                self.names[path] = node
            case Write(inode, data):
                self.data[inode] = self.data.get(inode, b"") + data
            case Sync() | SyncDirectory() | Elsewhere():
                pass

    def tree(self) -> Tree:
        """What can be found: nothing in a directory whose own name is missing."""
        found: Tree = {}
        for path in sorted(self.names):
            node, folder = self.names[path], _folder(path)
            if not folder or (folder in found and found[folder] is None):
                found[path] = self.data.get(node, b"") if isinstance(node, int) else node
        return found


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def tree_of(root: Path) -> Tree:
    found: Tree = {}
    for path in sorted(each for each in root.rglob("*") if each.name not in FOR_A_DELAY):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def put_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for path, node in tree.items():
        match node:
            case None:
                (folder / path).mkdir(mode=0o700)
            case str():
                (folder / path).symlink_to(node)
            case _:
                (folder / path).write_bytes(node)

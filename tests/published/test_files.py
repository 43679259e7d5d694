"""Files that threads read side by side, as DuckDB's do."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

from paliscribe.published.files import OutputFiles


def test_each_thread_reads_where_it_has_sought(tmp_path: Path) -> None:
    whole = random.Random(0).randbytes(1 << 20)
    (tmp_path / "part").write_bytes(whole)
    files = OutputFiles("runoutput", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()))

    with files.open("runoutput://part") as file:

        def read(seed: int) -> bool:
            random_ = random.Random(seed)
            for _ in range(300):
                start, size = random_.randrange(len(whole)), random_.randrange(5000)
                file.seek(start)
                if file.read(size) != whole[start : start + size]:
                    return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, range(16)))
        assert file.seek(-3, os.SEEK_END) == len(whole) - 3
        assert file.read() == whole[-3:]
        assert (file.tell(), file.read(10)) == (len(whole), b"")
        buffer = bytearray(8)
        file.seek(2)
        assert (file.readinto(buffer), bytes(buffer)) == (8, whole[2:10])
    assert file.closed

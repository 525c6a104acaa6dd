"""A web server in this process that answers as NCBI's genomes site does, and fails on demand."""

import functools
import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

COLUMNS = (
    "Sequence-Name Sequence-Role Assigned-Molecule Assigned-Molecule-Location/Type GenBank-Accn Relationship "
    "RefSeq-Accn Assembly-Unit Sequence-Length UCSC-style-name"
)


class Ncbi:
    """The files that are served, what was asked for, and which answers go wrong.

    `faults` has for the end of a path what its next answers are, in order: "cut" (half of what was asked for), an HTTP
    status, with a value for Retry-After behind it if need be, or "whole" (the file from its start, whatever was asked).
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str, str]] = []

    def add(self, accession: str, name: str, species: str, chromosomes: dict[str, str], length: int = 3000) -> None:
        """Put up an assembly of chromosomes (molecule: record name), with a scaffold and a mitochondrion."""
        digits = accession[4:13]
        folder = f"/{accession[:3]}/{digits[:3]}/{digits[3:6]}/{digits[6:]}/{accession}_{name}/"
        rng = np.random.default_rng(int(digits))
        fasta, report = [], [f"# Assembly name:  {name}", "#", f"# {COLUMNS}".replace(" ", "\t").replace("#\t", "# ")]
        rows = [(m, r, "assembled-molecule", "Chromosome", m, length) for m, r in chromosomes.items()]
        rows.append(("scaffold_7", f"NW_{digits}.1", "unplaced-scaffold", "na", "na", 500))
        rows.append(("MT", f"NC_9{digits[-5:]}.1", "assembled-molecule", "Mitochondrion", "MT", 300))
        for sequence, record, role, kind, molecule, size in rows:
            letters = "".join(rng.choice(list("ACGTacgt"), size))
            fasta.append(f">{record} {species} isolate X {kind} {molecule}, {name}, whole genome shotgun sequence\n")
            fasta += [letters[i : i + 80] + "\n" for i in range(0, size, 80)]
            fields = [
                sequence,
                role,
                molecule,
                kind,
                f"CM{record[3:]}",
                "=",
                record,
                "Primary Assembly",
                str(size),
                "na",
            ]
            report.append("\t".join(fields))
        self.put(folder, "_genomic.fna.gz", gzip.compress("".join(fasta).encode(), mtime=0))
        self.put(folder, "_assembly_report.txt", ("\r\n".join(report) + "\r\n").encode())

    def put(self, folder: str, suffix: str, data: bytes) -> None:
        """Put up a file of an assembly, and its checksum beside those of the others."""
        name = folder.rstrip("/").rpartition("/")[2] + suffix
        self.files[folder + name] = data
        line = f"{hashlib.md5(data).hexdigest()}  ./{name}\n".encode()
        self.files[folder + "md5checksums.txt"] = self.files.get(folder + "md5checksums.txt", b"") + line

    def path(self, end: str) -> str:
        """The one path that ends so."""
        (found,) = (path for path in self.files if path.endswith(end))
        return found


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, ncbi: Ncbi, *args: object) -> None:
        self.ncbi = ncbi
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        asked = self.headers.get("Range", "")
        self.ncbi.asked.append((self.command, self.path, asked))
        fault = self._fault() if with_body else ""
        if fault[:1].isdigit():
            status, _, after = fault.partition(" ")
            self.send_response(int(status))
            if after:
                self.send_header("Retry-After", after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.ncbi.files.get(self.path)
        if data is None:
            data = self._listing()
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "whole" else 0
        if start and start >= len(data):
            self.send_error(416)
            return
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = True

    def _fault(self) -> str:
        for end, faults in self.ncbi.faults.items():
            if self.path.endswith(end) and faults:
                return faults.pop(0)
        return ""

    def _listing(self) -> bytes | None:
        names = {path[len(self.path) :].split("/")[0] for path in self.ncbi.files if path.startswith(self.path)}
        if not self.path.endswith("/") or not names:
            return None
        links = "\n".join(f'<a href="{name}/">{name}/</a>   2024-03-18 10:00    -' for name in sorted(names))
        return f'<html><body><pre><a href="../">Parent Directory</a>\n{links}</pre></body></html>'.encode()


@contextmanager
def serving(ncbi: Ncbi) -> Iterator[Ncbi]:
    """Serve on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, ncbi))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    ncbi.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield ncbi
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

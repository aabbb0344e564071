"""Tests `bench/weights.sh` against a server on this machine: whole files, broken off and resumed, damaged, without ranges, refused, unreachable, and
through a proxy.

    python bench/parity/check_weights.py
"""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import golden_rule

SCRIPT = Path(__file__).resolve().parent.parent / "weights.sh"
CONTENT = golden_rule.values("weights", 300_000).tobytes()


class Server(http.server.BaseHTTPRequestHandler):
    """`/whole/…` serves ranges, `/plain/…` ignores them, `/damaged/…` has one wrong byte, `/breaks/…` breaks off half-way once."""

    ranges = []
    broken = set()

    def do_GET(self):
        # A proxy gets the whole address.
        kind = urllib.parse.urlsplit(self.path).path.split("/")[1]
        if kind == "gone":
            return self.send_error(404)
        body = CONTENT if kind != "damaged" else CONTENT[:1000] + b"x" + CONTENT[1001:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and kind != "plain" else 0
        Server.ranges.append((kind, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if kind == "breaks" and kind not in Server.broken:
            Server.broken.add(kind)
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body[start:])

    def log_message(self, *_):
        pass


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        table = temporary / "weights.tsv"
        hash_ = hashlib.sha256(CONTENT).hexdigest()
        kinds = ["whole", "plain", "damaged", "breaks", "gone"]
        rows = [("proxied", "http://weights.invalid/whole/proxied.pth")] + [(kind, f"{address}/{kind}/{kind}.pth") for kind in kinds] + [("nowhere", "http://127.0.0.1:1/nowhere.pth")]
        table.write_text("# name\tbytes\tsha256\turl\n" + "".join(f"{name}\t{len(CONTENT)}\t{hash_}\t{url}\n" for name, url in rows))
        out = temporary / "weights"

        def run(*names):
            environment = os.environ | {"WEIGHTS_TABLE": str(table), "no_proxy": "127.0.0.1", "http_proxy": address}
            return subprocess.run([SCRIPT, out, *names], env=environment, capture_output=True, text=True)

        def check(what, holds, result):
            print(f"weights.sh: {what}", flush=True)
            if not holds:
                sys.exit(f"parity: weights.sh: {what} does not hold; it said {result.stdout}{result.stderr}")

        def is_whole(name):
            return (out / f"{name}.pth").read_bytes() == CONTENT and not (out / f"{name}.pth.part").exists()

        result = run("whole")
        check("a whole file is downloaded", result.returncode == 0 and is_whole("whole"), result)
        before = len(Server.ranges)
        result = run("whole")
        check("and not downloaded again", result.returncode == 0 and len(Server.ranges) == before, result)
        result = run("breaks")
        if result.returncode:
            check("a broken download says how to resume", "resumes from byte" in result.stderr, result)
            result = run("breaks")
        resumed = ("breaks", len(CONTENT) // 2) in Server.ranges
        check("and resumes where it broke off", result.returncode == 0 and is_whole("breaks") and resumed, result)
        (out / "plain.pth.part").write_bytes(CONTENT[:1000])
        result = run("plain")
        check("without ranges it starts again", result.returncode == 0 and is_whole("plain"), result)
        result = run("damaged")
        refused = result.returncode and "not the published file" in result.stderr and not any(out.glob("damaged*"))
        check("a wrong hash is refused and nothing of it is kept", refused, result)
        (out / "whole.pth").write_bytes(CONTENT[:-1] + b"x")
        result = run("whole")
        check("a damaged file is named", result.returncode and "damaged or another file" in result.stderr, result)
        result = run("gone")
        check("a file that the server lacks is reported", result.returncode and "refuses" in result.stderr, result)
        result = run("nowhere")
        advice = all(word in result.stderr for word in ("https_proxy", "without internet", "SHA-256", str(out)))
        check("without internet it says what to do", result.returncode and advice, result)
        result = run("proxied")
        check("through a proxy it reaches what it cannot reach directly", result.returncode == 0 and is_whole("proxied"), result)
        result = run("vit_z")
        check("an unknown name lists the known ones", result.returncode and "breaks" in result.stderr, result)


if __name__ == "__main__":
    main()

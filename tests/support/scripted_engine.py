"""A scripted OpenAI server: `python -m tests.support.scripted_engine FOLDER [CERT KEY]`.

FOLDER/answer.json is a list of pieces of the chat stream, each written to the socket by itself
(a number is a pause in seconds); FOLDER/asked.jsonl gets the bodies; FOLDER/gone appears when a
client leaves before the end. The port is printed.
"""

import json
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_GET(self) -> None:
        models = json.dumps({"data": [{"id": "scripted"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(models)))
        self.end_headers()
        self.wfile.write(models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (self.folder / "asked.jsonl").open("a") as asked:
            asked.write(json.dumps({"key": self.headers["Authorization"], **body}) + "\n")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in json.loads((self.folder / "answer.json").read_text()):
                self._play(piece)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            (self.folder / "gone").touch()

    def _play(self, piece: str | float) -> None:
        if isinstance(piece, str):
            data = piece.encode("latin-1")  # bytes of any kind through JSON
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        else:
            time.sleep(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def main(folder: str, *tls: str) -> None:
    Handler.folder = Path(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

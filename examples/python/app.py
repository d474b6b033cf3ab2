"""A small web app: a page from a package in vendor/, served by Python's own library."""

import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from greetings import greeting


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            self.answer(200, f"{greeting(os.environ.get('POWERED_BY', 'Deis'))}\n")
        elif self.path == "/healthz":
            self.answer(200, "OK\n")
        else:
            self.answer(404, "not found\n")

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        if self.path != "/healthz":
            print(format % args)


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the requests under way
    request_queue_size = 128


port = int(os.environ.get("PORT", "5000"))
server = Server(("", port), Handler)
# shutdown waits for the loop, which runs in the thread that handles signals.
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print(f"listening on port {port}")
server.serve_forever(poll_interval=0.1)
server.server_close()
print("ended")

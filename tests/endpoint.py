"""An OpenAI-compatible endpoint on loopback that answers as it is told to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def good(i=0):
    return json.dumps({"summary": "A run took place.", "reflection": f"Noted under {chr(97 + i % 26)}."})


def reply(content, finish="stop", refusal=None):
    message = {"role": "assistant", "content": content, "refusal": refusal}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return (
        200,
        {},
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage},
    )


def error(status, headers=(), **body):
    return status, dict(headers), {"error": {"message": "no", **body}}


class Server:
    """An endpoint whose next answers are given; when they are used up it answers well."""

    def __init__(self):
        self.script, self.requests, self.headers, self.lock, self.times = [], [], [], threading.Lock(), []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.request_body = request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with owner.lock:
                    owner.requests.append(request)
                    owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                    owner.times.append(time.monotonic())
                    step = owner.script.pop(0) if owner.script else reply(good(len(owner.requests)))
                owner.answer(self, step)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler, step):
        if step == "cut":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
            handler.close_connection = True
            return
        drip, (status, headers, body) = (True, step[1]) if step[0] == "drip" else (False, step)
        text = json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(text)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for i in range(0, len(text), 40 if drip else len(text)):
            handler.wfile.write(text[i : i + (40 if drip else len(text))])
            handler.wfile.flush()
            time.sleep(0.02 if drip else 0)

"""The OpenAI-style endpoint: requests over HTTP, batched onto one model.

`app` speaks HTTP, `requests` reads and checks bodies, `replies` writes answers, the `dispatcher` decodes, in a
thread of its own, and `server` listens.
"""

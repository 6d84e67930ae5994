#!/usr/bin/env python3
"""The official `openai` client against a running server.

Starts nothing: takes the server's address and, where it asks for one, a key, by flag or from the environment
(FUSED_BASE_URL, FUSED_API_KEY). Any further arguments go to unittest.
"""

import argparse
import asyncio
import concurrent.futures
import http.client
import json
import os
import sys
import time
import unittest
import urllib.parse

import openai

BASE_URL = ""
API_KEY = None
READY_TIMEOUT_S = 60

PROMPT = "# git commit\n\n> Commit files to the repository."
MESSAGES = [{"role": "user", "content": "git commit"}]


def client(**options):
    options = {"api_key": API_KEY or "none", "max_retries": 0, "timeout": 120, **options}
    return openai.OpenAI(base_url=f"{BASE_URL}/v1", **options)


def raw(method, path, body=None, headers=None):
    """One request as it is: status, headers, body."""
    parts = urllib.parse.urlsplit(BASE_URL)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    sent = {"Content-Type": "application/json"} if body is not None else {}
    if API_KEY:
        sent["Authorization"] = f"Bearer {API_KEY}"
    sent.update(headers or {})
    connection.request(method, path, body=body, headers=sent)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


def raw_json(path, value):
    status, _, body = raw("POST", path, json.dumps(value).encode())
    assert status == 200, (status, body)
    return json.loads(body)


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = client()
        cls.model = cls.client.models.list().data[0].id

    def complete(self, **options):
        options = {"model": self.model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **options}
        return self.client.completions.create(**options)

    def chat(self, **options):
        options = {"model": self.model, "messages": MESSAGES, "max_tokens": 24, "temperature": 0, **options}
        return self.client.chat.completions.create(**options)


class Models(Case):
    def test_list_and_retrieve(self):
        listed = self.client.models.list()
        self.assertEqual(listed.object, "list")
        model = self.client.models.retrieve(self.model)
        self.assertEqual((model.id, model.object), (self.model, "model"))
        self.assertGreater(model.created, 1_600_000_000)

    def test_unknown(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")


class Completions(Case):
    def test_whole(self):
        answer = self.complete()
        self.assertTrue(answer.id.startswith("cmpl-"))
        self.assertEqual((answer.object, answer.model), ("text_completion", self.model))
        self.assertLess(abs(answer.created - time.time()), 300)
        self.assertTrue(answer.system_fingerprint.startswith("fused-"))
        self.assertEqual(len(answer.choices), 1)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertTrue(answer.choices[0].text)
        usage = answer.usage
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertTrue(0 < usage.completion_tokens <= 24)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertGreaterEqual(usage.model_extra["prompt_base_tokens"], usage.prompt_tokens)

    def test_streamed_equals_whole(self):
        whole = self.complete()
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        *pieces, last = chunks
        self.assertEqual("".join(chunk.choices[0].text for chunk in pieces), whole.choices[0].text)
        reasons = [chunk.choices[0].finish_reason for chunk in pieces]
        self.assertEqual(set(reasons[:-1]), {None})
        self.assertEqual(reasons[-1], whole.choices[0].finish_reason)
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertTrue(all(chunk.usage is None for chunk in pieces))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_usage_is_not_streamed_unasked(self):
        self.assertTrue(all(chunk.choices for chunk in self.complete(stream=True)))

    def test_several_prompts_times_n(self):
        prompts = ["# tar\n\n> Archiving", "# ls\n\n> List"]
        alone = [self.complete(prompt=prompt).choices[0].text for prompt in prompts]
        answer = self.complete(prompt=prompts, n=2)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        self.assertEqual([choice.text for choice in answer.choices], [alone[0], alone[0], alone[1], alone[1]])

    def test_token_ids_as_prompt(self):
        ids = raw_json("/tokenize", {"prompt": PROMPT})["tokens"]
        self.assertEqual(self.complete(prompt=ids).choices[0].text, self.complete().choices[0].text)
        both = self.complete(prompt=[ids, ids])
        self.assertEqual(len(both.choices), 2)

    def test_stop(self):
        text = self.complete(max_tokens=48).choices[0].text
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        choice = self.complete(max_tokens=48, stop=[stop, "never in the text"]).choices[0]
        self.assertEqual(choice.text, text[: text.index(stop)])
        self.assertEqual((choice.finish_reason, choice.model_extra["stop_reason"]), ("stop", stop))
        kept = self.complete(max_tokens=48, stop=stop, extra_body={"include_stop_str_in_output": True})
        self.assertEqual(kept.choices[0].text, text[: text.index(stop)] + stop)
        streamed = self.complete(max_tokens=48, stop=stop, stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in streamed), choice.text)

    def test_max_tokens(self):
        answer = self.complete(max_tokens=3, extra_body={"ignore_eos": True})
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (3, "length"))

    def test_seed(self):
        sample = {"temperature": 1.0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
        first, again = self.complete(seed=7, **sample), self.complete(seed=7, **sample)
        self.assertEqual(first.choices[0].text, again.choices[0].text)
        others = {self.complete(seed=seed, **sample).choices[0].text for seed in range(8)}
        self.assertGreater(len(others), 1)

    def test_salt_and_priority_change_no_answer(self):
        plain = self.complete().choices[0].text
        for extra in ({"cache_salt": "tenant-7"}, {"priority": -3}, {"cache_salt": "ü", "priority": 2**31 - 1}):
            self.assertEqual(self.complete(extra_body=extra).choices[0].text, plain)

    def test_cached_tokens(self):
        # Another salt each time, so that nobody has been here before.
        salt = f"{time.time_ns()}"
        prompt = PROMPT * 4
        for other, expected in ((salt, 0), (salt, None), (salt + "x", 0)):
            options = {"prompt": prompt, "extra_body": {"cache_salt": other}}
            usage = self.complete(**options).usage
            if expected is None:
                # The last token is computed, to draw the first one from.
                expected = usage.prompt_tokens - 1
            self.assertEqual(usage.prompt_tokens_details.cached_tokens, expected)
        *_, last = self.complete(**options, stream=True, stream_options={"include_usage": True})
        self.assertEqual(last.usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens - 1)

    def test_logprobs(self):
        choice = self.complete(logprobs=2, max_tokens=8).choices[0]
        logprobs = choice.logprobs
        lengths = {
            len(logprobs.tokens),
            len(logprobs.token_logprobs),
            len(logprobs.top_logprobs),
            len(logprobs.text_offset),
        }
        self.assertEqual(len(lengths), 1)
        self.assertEqual(logprobs.text_offset[0], 0)
        self.assertEqual(logprobs.text_offset, sorted(logprobs.text_offset))
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertLessEqual(logprob, 0)
            self.assertAlmostEqual(top[token], logprob, places=5)
            self.assertEqual(max(top.values()), top[token], "greedy takes the likeliest")

    def test_the_ending_token_has_its_logprob(self):
        # After a whole example a page ends.
        options = {"prompt": "`ls {{path}}`\n", "max_tokens": 4, "logprobs": 1, "extra_body": {"return_token_ids": True}}
        whole = self.complete(echo=True, **options)
        choice = whole.choices[0]
        self.assertEqual(choice.finish_reason, "stop")
        self.assertEqual(len(choice.logprobs.tokens), whole.usage.prompt_tokens + whole.usage.completion_tokens)
        self.assertEqual(choice.logprobs.text_offset[-1], len(choice.text))
        ids = choice.model_extra["token_ids"]
        self.assertEqual(len(ids), whole.usage.completion_tokens)
        chunks = list(self.complete(stream=True, **options))
        streamed = [chunk.choices[0] for chunk in chunks]
        logprobs = [lp for piece in streamed if piece.logprobs for lp in piece.logprobs.token_logprobs]
        self.assertEqual(logprobs, choice.logprobs.token_logprobs[whole.usage.prompt_tokens :])
        self.assertEqual([id for piece in streamed for id in piece.model_extra.get("token_ids") or []], ids)
        stopped = self.complete(prompt=PROMPT, stop=["\n"], logprobs=0)
        self.assertEqual(len(stopped.choices[0].logprobs.tokens), stopped.usage.completion_tokens)

    def test_echo_scores_a_prompt(self):
        answer = self.complete(echo=True, max_tokens=0, logprobs=1)
        choice = answer.choices[0]
        self.assertEqual(choice.text, PROMPT)
        self.assertEqual(len(choice.logprobs.tokens), answer.usage.prompt_tokens)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:]))
        self.assertEqual(answer.usage.completion_tokens, 0)

    def test_many_at_once_answer_as_alone(self):
        alone = self.complete().choices[0].text
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(lambda _: self.complete().choices[0].text, range(32)))
        self.assertEqual(set(texts), {alone})


class Chat(Case):
    def test_whole(self):
        answer = self.chat()
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        self.assertEqual(answer.object, "chat.completion")
        message = answer.choices[0].message
        self.assertEqual((message.role, message.refusal), ("assistant", None))
        self.assertTrue(message.content)

    def test_streamed_equals_whole(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        *pieces, last = chunks
        self.assertEqual(pieces[0].choices[0].delta.role, "assistant")
        self.assertEqual(pieces[0].choices[0].delta.content, "")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([chunk.choices[0].finish_reason for chunk in pieces[:-1]], [None] * (len(pieces) - 1))
        self.assertEqual(pieces[-1].choices[0].finish_reason, whole.choices[0].finish_reason)
        self.assertEqual((last.choices, last.usage), ([], whole.usage))

    def test_the_clients_own_stream_accumulator(self):
        # The accumulator refuses an answer that was cut for length, so this one ends at a stop string.
        stop = self.chat().choices[0].message.content[12:15]
        whole = self.chat(stop=[stop])
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        with self.client.chat.completions.stream(
            model=self.model, messages=MESSAGES, max_tokens=24, temperature=0, stop=[stop]
        ) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, whole.choices[0].message.content)

    def test_n(self):
        sample = {"temperature": 1.0, "n": 3, "seed": 3}
        whole = self.chat(**sample)
        self.assertEqual([choice.index for choice in whole.choices], [0, 1, 2])
        texts = {0: "", 1: "", 2: ""}
        for chunk in self.chat(stream=True, **sample):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        self.assertEqual([texts[idx] for idx in range(3)], [choice.message.content for choice in whole.choices])

    def test_logprobs(self):
        whole = self.chat(logprobs=True, top_logprobs=3, max_tokens=8)
        content = whole.choices[0].logprobs.content
        self.assertEqual(len(content), whole.usage.completion_tokens)
        chunks = self.chat(logprobs=True, top_logprobs=3, max_tokens=8, stream=True)
        logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
        self.assertEqual([position for logprob in logprobs for position in logprob.content], content)
        for position in content:
            self.assertLessEqual(position.logprob, 0)
            self.assertEqual(len(position.top_logprobs), 3)
            self.assertEqual(position.top_logprobs[0].token, position.token, "greedy takes the likeliest")
        text = b"".join(bytes(position.bytes) for position in content).decode(errors="replace")
        self.assertTrue(text.strip().startswith(whole.choices[0].message.content.strip()[:4]))

    def test_an_agents_two_turns(self):
        # What an agent sends that has had two calls answered, and wants text now; nothing of it is edited.
        def call(number, arguments):
            function = {"name": "run", "arguments": json.dumps(arguments)}
            return {"role": "assistant", "content": None, "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]}

        parameters = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
        tools = [{"type": "function", "function": {"name": "run", "description": "Runs a command.", "parameters": parameters}}]
        history = list(MESSAGES)
        for number, command in enumerate(("git status", "git log")):
            history.append(call(number, {"command": command}))
            history.append({"role": "tool", "tool_call_id": f"call_{number}", "content": "nothing to commit"})
            answer = self.chat(messages=history, tools=tools, tool_choice="none", extra_body={"min_tokens": 4})
            message = answer.choices[0].message
            self.assertTrue(message.content)
            self.assertIsNone(message.tool_calls)
            # As frameworks send it back.
            history.append(message.model_dump(exclude_none=True))
        history += [{"role": "assistant", "content": None}, *MESSAGES]
        answer = self.chat(messages=history, tools=[], extra_body={"min_tokens": 4})
        self.assertTrue(answer.choices[0].message.content)

    def test_content_in_parts(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": "git commit"}]}]
        self.assertEqual(self.chat(messages=parts).choices[0].message.content, self.chat().choices[0].message.content)

    def test_max_completion_tokens_wins(self):
        answer = self.chat(max_completion_tokens=2, max_tokens=9, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 2)

    def test_async_client(self):
        async def run():
            async with openai.AsyncOpenAI(
                base_url=f"{BASE_URL}/v1", api_key=API_KEY or "none", max_retries=0
            ) as asynchronous:

                async def one():
                    stream = await asynchronous.chat.completions.create(
                        model=self.model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True
                    )
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

                return await asyncio.gather(*(one() for _ in range(8)))

        self.assertEqual(set(asyncio.run(run())), {self.chat().choices[0].message.content})

    def test_a_stream_left_early_leaves_a_server_that_serves(self):
        for _ in range(8):
            stream = self.chat(stream=True, max_tokens=200, extra_body={"ignore_eos": True})
            next(iter(stream))
            stream.close()
        self.assertTrue(self.chat().choices[0].message.content)


class Errors(Case):
    def refused(self, kind, create, **options):
        with self.assertRaises(kind) as caught:
            create(**options)
        return caught.exception

    def test_bad_requests_name_the_field(self):
        for param, options in {
            "temperature": {"temperature": 3},
            "top_p": {"top_p": 0},
            "max_tokens": {"max_tokens": -1},
            "n": {"n": 0},
            "stop": {"stop": [""]},
            "logprobs": {"logprobs": 99},
            "prompt": {"prompt": []},
            "cache_salt": {"extra_body": {"cache_salt": ""}},
            "priority": {"extra_body": {"priority": "high"}},
        }.items():
            error = self.refused(openai.BadRequestError, self.complete, **options)
            self.assertEqual((error.param, error.code), (param, "invalid_argument"), options)
            self.assertEqual(error.type, "invalid_request_error")
        error = self.refused(openai.BadRequestError, self.chat, messages=[])
        self.assertEqual(error.param, "messages")
        error = self.refused(openai.BadRequestError, self.chat, response_format={"type": "json_object"})
        self.assertEqual((error.param, error.code), ("response_format", "unsupported"))
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        for param, options in {
            "tools": {"tools": tools},
            "tool_choice": {"tools": tools, "tool_choice": "required"},
            "regex": {"extra_body": {"regex": "[0-9]+"}},
        }.items():
            error = self.refused(openai.BadRequestError, self.chat, **options)
            self.assertEqual((error.param, error.code), (param, "unsupported"), options)

    def test_unknown_token_id(self):
        error = self.refused(openai.BadRequestError, self.complete, prompt=[4_000_000_000])
        self.assertEqual(error.code, "invalid_argument")

    def test_prompt_over_the_context(self):
        limit = self.client.models.retrieve(self.model).model_extra["max_model_len"]
        for stream in (False, True):
            error = self.refused(
                openai.BadRequestError, self.complete, prompt="word " * (2 * limit), stream=stream
            )
            self.assertEqual(error.code, "context_length_exceeded")

    def test_unknown_model(self):
        for stream in (False, True):
            error = self.refused(openai.NotFoundError, self.chat, model="no-such-model", stream=stream)
            self.assertEqual(error.code, "model_not_found")
            self.assertIn(self.model, error.message)

    def test_large_body(self):
        error = self.refused(openai.APIStatusError, self.complete, prompt="a" * (10 << 20))
        self.assertEqual((error.status_code, error.code), (413, "payload_too_large"))

    def test_key(self):
        if not API_KEY:
            self.skipTest("the server asks for no key")
        for key in ("wrong", API_KEY + "x", API_KEY[:-1]):
            with self.assertRaises(openai.AuthenticationError) as caught:
                client(api_key=key).models.list()
            self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_what_no_client_sends(self):
        for body, headers, status in (
            (b'{"prompt": ', {}, 400),
            (b'{"prompt": "\xff"}', {}, 400),
            (b'"prompt"', {}, 400),
            (b"[" * 100_000, {}, 400),
            (b"{}", {"Content-Type": "text/plain"}, 415),
        ):
            answered, _, answer = raw("POST", "/v1/completions", body, headers)
            self.assertEqual(answered, status, answer)
            self.assertEqual(set(json.loads(answer)["error"]), {"message", "type", "param", "code"})
        self.assertEqual(raw("GET", "/v1/completions")[0], 405)
        self.assertEqual(raw("GET", "/v1/none")[0], 404)
        self.assertTrue(self.complete().choices[0].text)


class Wire(Case):
    """What the client hides."""

    def test_server_sent_events(self):
        body = {"messages": MESSAGES, "max_tokens": 8, "stream": True, "temperature": 0}
        status, headers, answer = raw("POST", "/v1/chat/completions", json.dumps(body).encode())
        self.assertEqual(status, 200)
        self.assertEqual(headers["content-type"].split(";")[0], "text/event-stream")
        self.assertEqual(headers["cache-control"], "no-cache")
        text = answer.decode()
        self.assertTrue(text.endswith("data: [DONE]\n\n"), text[-80:])
        events = text.split("\n\n")[:-1]
        chunks = []
        for event in events[:-1]:
            self.assertTrue(event.startswith("data: "), event)
            self.assertNotIn("\n", event)
            chunks.append(json.loads(event.removeprefix("data: ")))
        for chunk in chunks:
            self.assertEqual(chunk["object"], "chat.completion.chunk")
            self.assertNotIn("usage", chunk)
            self.assertIn("finish_reason", chunk["choices"][0])
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        self.assertEqual(reasons[:-1], [None] * (len(chunks) - 1))
        self.assertIsNotNone(reasons[-1])

    def test_request_id(self):
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        _, headers, _ = raw("POST", "/v1/completions", body, {"X-Request-Id": "id-of-mine"})
        self.assertEqual(headers["x-request-id"], "id-of-mine")
        _, headers, _ = raw("POST", "/v1/completions", body)
        self.assertTrue(headers["x-request-id"])

    def test_tokenize_and_back(self):
        text = "git commit --message \"añadir 日本語 🙂\"\n"
        tokenized = raw_json("/tokenize", {"prompt": text, "return_token_strs": True, "add_special_tokens": False})
        self.assertEqual(tokenized["count"], len(tokenized["tokens"]))
        self.assertEqual(len(tokenized["token_strs"]), tokenized["count"])
        # Text of the domain takes fewer tokens; other text may take more, for base tokens were removed.
        page = "# git commit\n\n> Commit files to the repository.\n> More information: <https://git-scm.com/docs/git-commit>.\n"
        of_domain = raw_json("/tokenize", {"prompt": page, "add_special_tokens": False})
        self.assertGreater(of_domain["base_count"], of_domain["count"])
        self.assertEqual(raw_json("/detokenize", {"tokens": tokenized["tokens"]}), {"prompt": text})

    def test_operations(self):
        self.assertEqual(raw("GET", "/health")[0], 200)
        self.assertEqual(raw("GET", "/ready")[0], 200)
        self.assertIn("version", json.loads(raw("GET", "/version")[2]))
        status, headers, metrics = raw("GET", "/metrics")
        self.assertEqual((status, headers["content-type"]), (200, "text/plain; version=0.0.4"))
        self.assertIn(b"fused_gateway_requests_total", metrics)


def wait_until_ready():
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            status, _, body = raw("GET", "/ready")
            if status == 200:
                return
            reason = body.decode(errors="replace")
        except OSError as error:
            reason = str(error)
        if time.monotonic() > deadline:
            sys.exit(f"{BASE_URL} is not ready after {READY_TIMEOUT_S} s: {reason}")
        time.sleep(0.1)


def main():
    global BASE_URL, API_KEY
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default=os.environ.get("FUSED_BASE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--api-key", default=os.environ.get("FUSED_API_KEY"))
    arguments, rest = parser.parse_known_args()
    BASE_URL = arguments.base_url.rstrip("/")
    API_KEY = arguments.api_key
    print(f"openai {openai.__version__} against {BASE_URL}", flush=True)
    wait_until_ready()
    unittest.main(argv=[sys.argv[0], *rest])


if __name__ == "__main__":
    main()

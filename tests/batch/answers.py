"""Answers without a model. It imports little: scripted replicas use it too."""

from collections.abc import Sequence

from paliscribe.records import Prediction, Request


class Answers:
    """A call whose answers follow from its requests."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def result(self) -> list[Prediction]:
        return [
            Prediction(request.id, f"{request.prompt} of {request.image_key[:8]}", (1, 2), (-0.5, -0.25), "stop")
            for request in self.requests
        ]

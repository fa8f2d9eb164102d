"""What the page is told beside results."""


class PromptServer:
    def __init__(self):
        self.texts = []

    def send_progress_text(self, text, node_id):
        self.texts.append((node_id, text))


PromptServer.instance = PromptServer()

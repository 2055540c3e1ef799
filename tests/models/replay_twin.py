"""A replay buffer in plain Python, obviously right: what a batch has to be, one transition at a time."""

from __future__ import annotations

import numpy as np


class ReplayTwin:
    """Keep whole episodes in lists and build every window step by step."""

    def __init__(self):
        self.place = {}  # step id -> (episode, t)
        self.open = {}  # stream -> episode being written

    def reset(self, stream, observation):
        self.open[stream] = {"obs": [observation], "act": [], "rew": [], "terminated": False}

    def step(self, stream, step_id, action, reward, terminated, observation):
        episode = self.open[stream]
        self.place[step_id] = (episode, len(episode["act"]))
        episode["act"].append(action)
        episode["rew"].append(np.float32(reward))
        episode["obs"].append(observation)
        episode["terminated"] = terminated

    def forget(self, step_ids):
        for step_id in step_ids:
            del self.place[step_id]

    def transition(self, step_id, n_step, gamma, frame_stack, padding):
        episode, t = self.place[step_id]
        steps = min(n_step, len(episode["act"]) - t)
        total = np.float64(0)
        for j in range(steps):
            total += np.float64(episode["rew"][t + j]) * np.power(np.float64(gamma), j)
        discount = np.power(np.float64(gamma), steps)
        if episode["terminated"] and t + steps == len(episode["act"]):
            discount = 0.0
        return (
            self.stack(episode, t, frame_stack, padding),
            episode["act"][t],
            np.float32(total),
            np.float32(discount),
            self.stack(episode, t + steps, frame_stack, padding),
        )

    def stack(self, episode, t, frame_stack, padding):
        if frame_stack == 1:
            return episode["obs"][t]
        frames = []
        for i in range(t - frame_stack + 1, t + 1):
            frame = episode["obs"][max(i, 0)]
            frames.append(np.zeros_like(frame) if i < 0 and padding == "zeros" else frame)
        return np.stack(frames)

    def read(self, step_ids, n_step, gamma, frame_stack, padding):
        rows = [self.transition(i, n_step, gamma, frame_stack, padding) for i in step_ids]
        return [np.stack(column) for column in zip(*rows, strict=True)]

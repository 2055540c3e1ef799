"""Compiled loops of planning: which rows a window needs, and where they lie.

They keep the GIL: each takes microseconds, and a thread that gives it up waits far longer until it has it back.
Addresses are int64; tables are indexed by slot.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from diskreplay.addresses import ask_for_line, pointer

ZERO = -1
PLANNED, LACKING = -1, -2
RUNNING, ENDED, TERMINATED = 0, 1, 2


@njit(cache=True)
def split_step_ids(step_ids, steps, base, slot_of, slots, rows):
    """Fill slots (B,) and rows (B,) of step ids (B,); slot -1 where a segment has none.

    Args:
        steps: Rows of a segment.
        base, slot_of: Slot of segment base + i, or -1.
    """
    for i in range(len(step_ids)):
        segment = step_ids[i] // steps
        place = segment - base
        slots[i] = slot_of[place] if 0 <= place < len(slot_of) else -1
        rows[i] = step_ids[i] - segment * steps


@njit(cache=True)
def join_step_ids(leaves, span, segments, steps, step_ids):
    """Fill step_ids (B,) of leaves (B,), of which every segment has `span`.

    Args:
        segments: The segment of each `span` leaves.
        steps: Rows of a segment.
    """
    for i in range(len(leaves)):
        place = leaves[i] // span
        step_ids[i] = segments[place] * steps + (leaves[i] - place * span)


@njit(cache=True)
def join_leaves(places, rows, span, known, size, loaded, priorities, leaves):
    """Fill leaves (B,) of places and rows (B,), unless one of them is not that of a transition whose block is loaded.

    Args:
        span: Leaves of a place.
        known: Rows of each place.
        size: Leaves of a block.
        loaded: Which blocks are loaded.
        priorities: Of each leaf; negative where it holds no transition.

    Returns:
        Whether it was done.
    """
    for i in range(len(places)):
        if places[i] < 0 or rows[i] >= known[places[i]]:
            return False
        leaf = places[i] * np.int64(span) + rows[i]
        if not loaded[leaf // size] or priorities[leaf] < 0:
            return False
        leaves[i] = leaf
    return True


@njit(cache=True)
def lacks_ends(slots, n_ends, ends_address):
    """Return whether a slot of (N,) has episode ends that are not in memory."""
    lacking = False
    for i in range(len(slots)):
        lacking |= n_ends[slots[i]] > 0 and ends_address[slots[i]] == 0
    return lacking


@njit(cache=True)
def ask_for_ends(slots, rows, known, n_ends, ends_address):
    """Ask early for the lines where `first_end_from` will look first for the ends of rows (N,) of slots (N,)."""
    for i in range(len(slots)):
        count = n_ends[slots[i]]
        if count > 0:
            ask_for_line(np.uint64(ends_address[slots[i]] + 4 * _guess(rows[i], count, known[slots[i]])))


@njit(cache=True)
def _guess(row, count, known):
    return max(np.int64(0), min(np.int64(count) - 1, np.int64(row) * count // max(1, known)))


@njit(cache=True)
def first_end_from(ends_address, count, row, known, ranked):
    """Return the first of the episode ends at an address that is not before a row; `count` if there is none.

    Looked for from where it would stand if all episodes were about as long: then one line of memory is touched, where
    bisecting touches several, and a store of a billion steps has none of them in a cache.

    Args:
        count: Ends there are.
        known: Rows of the segment.
        ranked: 1 if `row` is the rank of a step among those that can be sampled, else 0.
    """
    if count == 0:
        return 0
    ends = carray(pointer(ends_address), (count,), np.int32)
    low = high = _guess(row, count, known)
    step = 1
    if ends[low] - ranked * low < row:
        low += 1
        high = low + step
        while high < count and ends[high - 1] - ranked * (high - 1) < row:
            low, step = high, 2 * step
            high = low + step
        high = min(high, count)
    else:
        low = high - step
        while low > 0 and ends[low] - ranked * low >= row:
            high, step = low, 2 * step
            low = high - step
        low = max(low, 0)
    while low < high:
        middle = (low + high) // 2
        if ends[middle] - ranked * middle < row:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def lacks_files(slots, fds, bases):
    """Return whether a slot of (N,) has neither an open file nor rows in memory of a field."""
    lacking = False
    for i in range(len(slots)):
        lacking |= fds[slots[i]] < 0 and bases[slots[i]] == 0
    return lacking


@njit(cache=True)
def stamp_slots(slots, stamps, stamp, found, count):
    """Stamp each slot of (N,) that is not negative, and add those that were not stamped yet to found[count:].

    Returns:
        How many are found now.
    """
    for i in range(len(slots)):
        slot = slots[i]
        if slot >= 0 and stamps[slot] != stamp:
            stamps[slot] = stamp
            found[count] = slot
            count += 1
    return count


@njit(cache=True)
def plan_windows(slots, rows, n, k, shared, pad_zeros, available, previous, following, first_end, last_end,
                 first_flags, n_ends, ends_address, flags_address, out_slot, out_row, reward_slot, reward_row,
                 lengths, outcome):  # fmt: skip
    """Choose the rows of B windows: k observations up to step t, k up to t + m, and m rewards, m <= n.

    A window stays in its episode: m is cut at the episode's last row, or at the newest row of a running episode;
    stacks are filled up with the episode's first row (or with nothing, `ZERO`, if pad_zeros).

    Args:
        slots, rows: (B,) slot and row of step t.
        n, k: n-step and frame stack.
        shared: Write k + 1 columns, of which the next observation's are columns 1..k (only with n = 1).
        available, previous, following, first_end, last_end, first_flags, n_ends: The segment table.
        ends_address, flags_address: Per slot, address of i32 rows of episode ends and of u8 flags, 0 if they are not
            in memory; needed for the slots of the steps themselves only.
        out_slot, out_row: (B, 2k) or (B, k + 1), filled in.
        reward_slot, reward_row: (B, n), filled in; ZERO past the window.
        lengths: (B,) m, filled in.
        outcome: (B,) RUNNING, ENDED or TERMINATED after m steps, filled in.

    Returns:
        PLANNED; or LACKING if ends that are needed are not in memory; or the first position whose row is not a step
        that can be sampled, times two, and one more if there is no such row at all.
    """
    for i in range(len(slots)):
        if slots[i] < 0 or rows[i] >= available[slots[i]]:
            return 2 * i + 1
    if lacks_ends(slots, n_ends, ends_address):
        return LACKING
    ask_for_ends(slots, rows, available, n_ends, ends_address)
    for i in range(len(slots)):
        slot, row = slots[i], rows[i]
        count = n_ends[slot]
        low = first_end_from(ends_address[slot], count, row, available[slot], 0)
        if low < count and carray(pointer(ends_address[slot]), (count,), np.int32)[low] == row:
            return 2 * i
        # backwards: rows of the episode before t, at most k - 1
        back = 0
        if low > 0:
            back = min(k - 1, row - carray(pointer(ends_address[slot]), (count,), np.int32)[low - 1] - 1)
        else:
            back = min(k - 1, row)
            here = previous[slot]
            while back < k - 1 and here >= 0:
                if last_end[here] >= 0:
                    back += min(k - 1 - back, available[here] - 1 - last_end[here])
                    break
                back += min(k - 1 - back, available[here])
                here = previous[here]
        # forwards: steps until the episode's last row, at most n
        ahead, done = 0, RUNNING
        if low < count:
            ends = carray(pointer(ends_address[slot]), (count,), np.int32)
            ahead = min(n, ends[low] - row)
            if ahead == ends[low] - row:
                flags = carray(pointer(flags_address[slot]), (count,), np.uint8)
                done = TERMINATED if flags[low] & 1 else ENDED
        else:
            ahead = min(n, available[slot] - 1 - row)
            here = slot
            while ahead < n and following[here] >= 0:
                here = following[here]
                if available[here] == 0:
                    break
                if first_end[here] >= 0:
                    step = min(n - ahead, first_end[here] + 1)
                    ahead += step
                    if step == first_end[here] + 1:
                        done = TERMINATED if first_flags[here] & 1 else ENDED
                    break
                ahead += min(n - ahead, available[here])
        if ahead <= 0:
            return 2 * i
        lengths[i] = ahead
        outcome[i] = done
        width = k + 1 if shared else 2 * k
        for j in range(width):
            if j < k:
                offset = j - (k - 1)
            elif shared:
                offset = 1
            else:
                offset = ahead - (k - 1) + (j - k)
            if offset < -back:
                if pad_zeros:
                    out_slot[i, j], out_row[i, j] = ZERO, 0
                    continue
                offset = -back
            if 0 <= row + offset < available[slot]:
                out_slot[i, j], out_row[i, j] = slot, row + offset
            elif not _walk(slot, row + offset, available, previous, following, out_slot, out_row, i, j):
                return 2 * i
        for j in range(n):
            if j < ahead:
                if row + j < available[slot]:
                    reward_slot[i, j], reward_row[i, j] = slot, row + j
                elif not _walk(slot, row + j, available, previous, following, reward_slot, reward_row, i, j):
                    return 2 * i
            else:
                reward_slot[i, j], reward_row[i, j] = ZERO, 0
    return PLANNED


@njit(cache=True)
def _walk(slot, row, available, previous, following, out_slot, out_row, i, j):
    """Find the segment that holds a row given relative to `slot`, and write (slot, row) to the plan.

    Returns:
        Whether there is one; always, unless the tables contradict each other.
    """
    while row < 0:
        slot = previous[slot]
        if slot < 0:
            return False
        row += available[slot]
    while row >= available[slot]:
        row -= available[slot]
        slot = following[slot]
        if slot < 0:
            return False
    out_slot[i, j] = slot
    out_row[i, j] = row
    return True


@njit(cache=True)
def steps_of_ranks(ranks, until, live, segments, steps, available, n_ends, ends_address, slots, step_ids):
    """Find the steps of B ranks, counted from 0 over the steps that can be sampled, segment after segment.

    Args:
        ranks: (B,).
        until: (segments,) how many such steps there are up to and with each live segment.
        live: (segments,) their slots.
        segments, available, n_ends, ends_address: The segment table.
        steps: Rows of a segment.
        slots: (B,), filled in.
        step_ids: (B,), filled in.

    Returns:
        PLANNED; or LACKING if ends that are needed are not in memory: then slots are filled in all the same; or the
        first position whose rank there is not.
    """
    for i in range(len(ranks)):
        if len(until) == 0 or not 0 <= ranks[i] < until[-1]:
            return i
        low, high = 0, len(until) - 1
        while low < high:
            middle = (low + high) // 2
            if until[middle] > ranks[i]:
                high = middle
            else:
                low = middle + 1
        slots[i] = live[low]
        step_ids[i] = ranks[i] - (until[low - 1] if low > 0 else 0)
    if lacks_ends(slots, n_ends, ends_address):
        return LACKING
    ask_for_ends(slots, step_ids, available, n_ends, ends_address)
    for i in range(len(ranks)):
        slot, nth = slots[i], step_ids[i]
        low = first_end_from(ends_address[slot], n_ends[slot], nth + 1, available[slot], 1)
        step_ids[i] = segments[slot] * steps + nth + low
    return PLANNED


@njit(cache=True)
def locate(slots, rows, chunk_steps, chunk_bytes, fds, bases, steps, codeds, indexes, checks, sizes,
    out_fd, out_offset, out_length, out_inner, out_check, out_address):  # fmt: skip
    """Find where each row of one field lies: in memory, or in which chunk of which shard.

    Args:
        slots, rows: (N,); slot ZERO stands for a row of zeros.
        chunk_steps, chunk_bytes: The field's geometry.
        fds, bases, steps, codeds, indexes, checks, sizes: Per slot: open shard, address of rows in memory, bytes from
            one of them to the next, address of the shard itself in memory or mapped, address of the shard index (0:
            chunks follow each other, uncompressed), address of the chunks' checksums, length of the shard file in
            bytes. An address is 0 of what is not there.
        out_*: (N,) filled in: file, byte offset and length of the chunk, row in the chunk, the chunk's checksum;
            or the row's address; or all of them, and the chunk's address, negative.

    Returns:
        -1, or the first position whose slot is neither open nor in memory or whose shard index is impossible.
    """
    for i in range(len(slots)):
        slot = slots[i]
        out_fd[i] = -1
        out_address[i] = 0
        if slot == ZERO:
            out_address[i] = ZERO
        elif bases[slot] != 0:
            out_address[i] = bases[slot] + rows[i] * steps[slot]
        elif fds[slot] < 0:
            return i
        else:
            chunk = rows[i] // chunk_steps
            out_fd[i] = fds[slot]
            out_inner[i] = rows[i] - chunk * chunk_steps
            out_check[i] = carray(pointer(checks[slot] + chunk * 4), (1,), np.uint32)[0]
            if indexes[slot] == 0:
                out_offset[i] = chunk * (chunk_bytes + 4)
                out_length[i] = chunk_bytes + 4
            else:
                entry = carray(pointer(indexes[slot] + chunk * 16), (2,), np.uint64)
                if entry[0] > sizes[slot] or entry[1] > sizes[slot] or entry[1] <= 4:
                    return i
                out_offset[i] = np.int64(entry[0])
                out_length[i] = np.int64(entry[1])
            if out_offset[i] + out_length[i] > sizes[slot]:
                return i
            if codeds[slot] != 0:
                out_address[i] = -(codeds[slot] + out_offset[i])
    return -1

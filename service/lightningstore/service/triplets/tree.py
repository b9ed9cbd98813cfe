"""The tree of a trace: parents that never came, cycles, and spans that hang loose. Iterative throughout."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.steps import SLICE, Steps, sort

#: Id of the node above several roots: no span has it.
VIRTUAL_ROOT = b""


def fill_times(nodes: list[Node]) -> None:
    """Give spans without times those of the span before them by sequence id, or else of the next one.

    `nodes`: by sequence id.
    """
    known = next((node.start for node in nodes if node.start), 0)
    for node in nodes:
        if not node.start:
            node.begin = known
        known = node.begin
        node.finish = node.end or node.begin


def grow(nodes: list[Node]) -> Steps[Node | None]:
    """Return the root of the tree, None without spans. `nodes`: by sequence id."""
    fill_times(nodes)
    by_id: dict[bytes, Node] = {}
    for node in nodes:
        by_id.setdefault(node.span_id, node)
    yield
    roots: list[Node] = []
    missing: dict[bytes, Node] = {}
    for at, node in enumerate(by_id.values()):
        if not any(node.parent_id):
            roots.append(node)
        elif (parent := by_id.get(node.parent_id)) is not None:
            parent.add(node)
        else:
            if node.parent_id not in missing:
                missing[node.parent_id] = Node(node.parent_id, sequence_id=node.sequence_id)
            missing[node.parent_id].add(node)
        if at % SLICE == SLICE - 1:
            yield
    for stand_in in missing.values():
        _span_over(stand_in)
        roots.append(stand_in)
    roots.extend(_cut_cycles(by_id, roots))
    yield
    for at, node in enumerate((*by_id.values(), *missing.values())):
        if len(node.children) > 1:
            node.children = sort(node.children, key=lambda child: child.order)
        if at % SLICE == SLICE - 1:
            yield
    if len(roots) <= 1:
        return roots[0] if roots else None
    root = Node(VIRTUAL_ROOT)
    root.children = sort(roots, key=lambda child: child.order)
    _span_over(root)
    return root


def _span_over(node: Node) -> None:
    """Give a stand-in the times that its children span."""
    first, *others = node.children
    node.start, node.end, node.begin, node.finish = (
        first.start,
        first.end,
        first.begin,
        first.finish,
    )
    for child in others:
        node.start = min(node.start or child.start, child.start or node.start)
        node.end = max(node.end, child.end)
        node.begin = min(node.begin, child.begin)
        node.finish = max(node.finish, child.finish)


def _cut_cycles(by_id: dict[bytes, Node], roots: list[Node]) -> list[Node]:
    """Return the first span of each cycle of parents, cut off from its parent."""
    seen: set[bytes] = set()
    below = list(roots)
    while below:
        node = below.pop()
        seen.add(node.span_id)
        below.extend(node.children)
    cut: list[Node] = []
    if len(seen) - sum(root.span_id not in by_id for root in roots) == len(by_id):
        return cut
    for start in by_id.values():
        path: dict[bytes, Node] = {}
        node = start
        while node.span_id not in seen and node.span_id not in path:
            path[node.span_id] = node
            node = by_id[node.parent_id]
        if node.span_id in path:
            ids = list(path)
            cycle = [path[i] for i in ids[ids.index(node.span_id) :]]
            first = min(cycle, key=lambda member: member.order)
            by_id[first.parent_id].remove(first)
            cut.append(first)
        seen.update(path)
    return cut


def preorder(root: Node) -> list[Node]:
    """Return all nodes from above."""
    found: list[Node] = []
    left = [root]
    while left:
        node = left.pop()
        found.append(node)
        if node.children:
            left.extend(reversed(node.children))
    return found


def repair(root: Node) -> Steps[None]:
    """Put each span that hangs beside others under the tightest one that encloses it in time.

    Only the children of the first node from above that has not just one are moved. The tightest is the
    shortest: slack is the difference of two durations. What is below a span already is left out.
    """
    node = root
    while len(node.children) == 1:
        node = node.children[0]
    loose = list(node.children)
    if not loose:
        return
    nodes: list[Node] = []
    # Which of the loose ones each node is under.
    under: list[bytes] = []
    for at, child in enumerate(loose):
        below = preorder(child) if child.children else [child]
        nodes += below
        under += [child.span_id] * len(below)
        if at % SLICE == SLICE - 1:
            yield
    yield
    best = yield from _tightest(nodes, loose)
    # Which of the loose ones a loose one has been put under.
    moved: dict[bytes, bytes] = {}

    def top(span_id: bytes) -> bytes:
        while span_id in moved:
            over = moved[span_id]
            if over in moved:
                moved[span_id] = over = moved[over]
            span_id = over
        return span_id

    others: _Others | None = None
    count = len(loose)
    touched: dict[bytes, Node] = {}
    for at, child in enumerate(loose):
        if at % SLICE == SLICE - 1:
            yield
        if count == 1:
            break
        found = best.get(child.span_id)
        if found is not None and top(under[found]) == child.span_id:
            # Its own descendant: clocks differ. A span cannot be below itself, so the next one counts.
            if others is None:
                others = _Others(nodes, [top(loose_id) for loose_id in under])
                yield
            found = yield from others.find(child)
        if found is None:
            continue
        parent, over = nodes[found], top(under[found])
        if others is not None:
            yield from others.join(child.span_id, over)
        moved[child.span_id] = over
        child.moved = True
        parent.add(child)
        touched[parent.span_id] = parent
        count -= 1
    node.children = [child for child in loose if child.span_id not in moved]
    for parent in touched.values():
        parent.children = sort(parent.children, key=lambda child: child.order)


class _Shortest:
    """The shortest of the spans that end at a given time or later, among those added so far.

    Holds only what can still be an answer: the later one of them ends, the longer it is.
    """

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._keys: list[int] = []

    def add(self, end: int, key: int) -> None:
        """Add a span; a shorter one has a smaller key."""
        ends, keys = self._ends, self._keys
        place = bisect_left(ends, end)
        if place < len(ends) and keys[place] < key:
            return
        if place < len(ends) and ends[place] == end:
            place += 1
        first = bisect_left(keys, key, 0, place)
        ends[first:place] = (end,)
        keys[first:place] = (key,)

    def find(self, end: int) -> int | None:
        """Return the smallest key."""
        place = bisect_left(self._ends, end)
        return self._keys[place] if place < len(self._keys) else None


def _tightest(nodes: list[Node], loose: list[Node]) -> Steps[dict[bytes, int]]:
    """Return for each loose node the place of the shortest one that begins no later and ends no earlier.

    One that takes exactly the same time is none. A sweep by start, those that end last first, so that all
    that can enclose a node have been seen before it: n log n, however the spans lie.
    """
    timed = sort(
        ((node.start, -node.end, at) for at, node in enumerate(nodes) if node.start and node.end),
        key=lambda interval: interval,
    )
    shortest = _Shortest()
    asked = {node.span_id for node in loose}
    best: dict[bytes, int] = {}
    many = len(nodes)
    interval: tuple[int, int] | None = None
    found: int | None = None
    for done, (start, negative_end, at) in enumerate(timed, 1):
        if (start, negative_end) != interval:
            interval, found = (start, negative_end), shortest.find(-negative_end)
        if found is not None and nodes[at].span_id in asked:
            best[nodes[at].span_id] = found % many
        shortest.add(-negative_end, (-negative_end - start) * many + at)
        if done % SLICE == 0:
            yield
    return best


#: The shortest spans of a stretch of time, of two families at most: length and place, and whose family.
_Pair = tuple[tuple[tuple[int, int], int], ...]


def _shorter(one: _Pair, other: _Pair) -> _Pair:
    if not one or not other:
        return one or other
    first, *rest = sorted(one + other)
    return (first, *[span for span in rest if span[1] != first[1]][:1])


class _Others:
    """The shortest span around another that is not of its family: all that hangs below one loose span.

    Needed where clocks differ. Families join, the smaller changes its number: n log n twice, however the
    spans lie. A tree over the ends holds the spans that have begun.
    """

    def __init__(self, nodes: list[Node], families: list[bytes]) -> None:
        """`families`: the loose span that each node is below."""
        self._nodes = nodes
        timed = [at for at, node in enumerate(nodes) if node.start and node.end]
        self._starts = sort(timed, key=lambda at: -nodes[at].start)
        timed = sort(timed, key=lambda at: (nodes[at].end, -nodes[at].start))
        self._ends = [(nodes[at].end, -nodes[at].start) for at in timed]
        self._leaf = {at: len(timed) + leaf for leaf, at in enumerate(timed)}
        self._tree: list[_Pair] = [()] * (2 * len(timed))
        self._number = {family: number for number, family in enumerate(dict.fromkeys(families))}
        self._members: list[list[int]] = [[] for _ in self._number]
        self._family = [self._number[family] for family in families]
        for at in timed:
            self._members[self._family[at]].append(at)

    def _set(self, at: int) -> None:
        node, leaf, tree = self._nodes[at], self._leaf[at], self._tree
        tree[leaf] = (((node.end - node.start, at), self._family[at]),)
        while leaf > 1:
            leaf >>= 1
            tree[leaf] = _shorter(tree[2 * leaf], tree[2 * leaf + 1])

    def find(self, child: Node) -> Steps[int | None]:
        """Return the place of the shortest one; to be asked in the order of starts."""
        while self._starts and self._nodes[self._starts[-1]].start <= child.start:
            self._set(self._starts.pop())
            if len(self._starts) % SLICE == 0:
                yield
        found: _Pair = ()
        size = len(self._ends)
        # Behind all that take exactly the same time.
        low, high = size + bisect_right(self._ends, (child.end, -child.start)), 2 * size
        while low < high:
            if low & 1:
                found = _shorter(found, self._tree[low])
                low += 1
            if high & 1:
                high -= 1
                found = _shorter(found, self._tree[high])
            low, high = low >> 1, high >> 1
        own = self._number[child.span_id]
        return next((at for (_, at), family in found if family != own), None)

    def join(self, one: bytes, other: bytes) -> Steps[None]:
        """Make the families of two loose spans one, named by the second."""
        small, large = sorted(
            (self._number[one], self._number[other]), key=lambda n: len(self._members[n])
        )
        self._number[other] = large
        for done, at in enumerate(self._members[small], 1):
            self._family[at] = large
            if self._tree[self._leaf[at]]:
                self._set(at)
            if done % SLICE == 0:
                yield
        self._members[large] += self._members[small]

"""Round trips between nodes, as far as nodes have measured and published them."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hivemint.protocol.ids import PeerId
from hivemint.swarm.records import trip_key


def published_trips(nodes: Sequence[tuple[PeerId, Mapping[bytes, float]]]) -> NDArray[np.float64]:
    """Seconds of a round trip for each two of `nodes`, [n, n]: symmetric, NaN where neither has measured it.

    `nodes`: each with what it says, by `trip_key`. Where both ends say something the longer one counts, so that a node
    can't make itself near to one that has measured it; and nobody's word counts about a link of others. Nodes measure
    those alone that they push to, so mostly one end speaks, and may lie: `Costs.between` holds that against what this
    client has measured. Keys are short: what is said of a key that two nodes have counts for neither.
    """
    keys = [trip_key(peer) for peer, _ in nodes]
    counts = Counter(keys)
    rows = {key: row for row, key in enumerate(keys) if counts[key] == 1}
    said = np.full((len(nodes), len(nodes)), np.nan)
    for row, (_, trips) in enumerate(nodes):
        for key, seconds in trips.items():
            other = rows.get(key, row)
            if other != row:
                said[row, other] = seconds
    longer: NDArray[np.float64] = np.fmax(said, said.T)
    return longer

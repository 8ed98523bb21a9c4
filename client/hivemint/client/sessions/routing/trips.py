"""Round trips between nodes, as far as nodes have measured and published them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hivemint.protocol.ids import PeerId
from hivemint.swarm.records import trip_key


def published_trips(nodes: Sequence[tuple[PeerId, Mapping[bytes, float]]]) -> NDArray[np.float64]:
    """Seconds of a round trip for each two of `nodes`, [n, n]: symmetric, NaN where neither has measured it.

    `nodes`: each with what it says, by `trip_key`. Where both ends say something the longer one counts, so that a node
    can't make itself near to one that has measured it; and nobody's word counts about a link of others.
    """
    rows = {trip_key(peer): row for row, (peer, _) in enumerate(nodes)}
    said = np.full((len(nodes), len(nodes)), np.nan)
    for row, (_, trips) in enumerate(nodes):
        for key, seconds in trips.items():
            other = rows.get(key, row)
            if other != row:
                said[row, other] = seconds
    longer: NDArray[np.float64] = np.fmax(said, said.T)
    return longer

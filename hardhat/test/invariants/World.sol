// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Kit} from "../support/Kit.sol";
import {ContractWallet, HostileWallet} from "../support/Wallets.sol";

/// @dev The actors of the invariant runs, and the reference model of accounts and keys that they are compared with.
abstract contract World is Kit {
    struct ModelAccount {
        uint256 balance;
        uint256 collected;
        uint256 thawEnd;
        uint256 thawBlock;
        uint256 highestVoucher;
        uint256 deposits;
        uint256 withdrawals;
        uint256 minted;
    }

    struct ModelKey {
        uint256 validUntil;
        bool set;
        bool known;
    }

    uint256 internal constant NODES = 3;
    uint256 internal constant CLIENTS = 5;
    uint256 internal constant NODE_KEY = 0x4E0DE0;
    uint256 internal constant WALLET_KEY = 0xC11E00;

    address[NODES] public nodes;
    address[NODES] internal owners;
    /// @dev Two externally owned accounts, a node's own operator, a contract wallet, and one that refuses everything.
    address[CLIENTS] public clients;

    mapping(address client => mapping(address node => ModelAccount)) internal book;
    mapping(address client => mapping(address key => ModelKey)) internal keyBook;

    /// @dev The orders that each client has signed and that were obeyed.
    mapping(address client => uint256) internal orders;
    uint256 internal pausedUntil;

    /// @dev How often each move has worked and how often the contracts have refused it, by its name.
    mapping(string move => uint256) public worked;
    mapping(string move => uint256) public refused;

    uint256 public given;
    uint256 public burned;
    uint256 public settledMints;
    mapping(uint256 epoch => uint256) public lostIn;
    uint256 public emitted;

    function setUp() public virtual override {
        super.setUp();
        for (uint256 i; i < NODES; ++i) {
            owners[i] = i == 2 ? address(new HostileWallet()) : address(uint160(0x0E0E00 + i));
            nodes[i] = vm.addr(NODE_KEY + i);
        }
        register(NODE_KEY, owners[0], address(0xFA01), 5 ether);
        register(NODE_KEY + 1, owners[1], owners[1], 3 ether);
        // The third node's payout is a wallet that reverts on whatever it is asked.
        register(NODE_KEY + 2, owners[2], owners[2], 0);
        clients[0] = vm.addr(WALLET_KEY);
        clients[1] = vm.addr(WALLET_KEY + 1);
        clients[2] = nodes[0];
        clients[3] = address(new ContractWallet());
        clients[4] = address(new HostileWallet());
    }

    /// @dev The key with which client `i` signs for itself; 0 for a contract.
    function ownKey(uint256 i) internal pure returns (uint256) {
        return i < 2 ? WALLET_KEY + i : i == 2 ? NODE_KEY : 0;
    }

    function sessionKeyOf(uint256 i) internal pure returns (uint256) {
        return SESSION_KEY + i;
    }

    function modelOf(address client_, address node_) external view returns (ModelAccount memory) {
        return book[client_][node_];
    }

    /// @dev Whether the model lets `signer` pay from the client's accounts now.
    function pays(address client_, address signer) internal view returns (bool) {
        if (signer == client_) return true;
        ModelKey storage k = keyBook[client_][signer];
        return k.set && vm.getBlockTimestamp() <= k.validUntil + THAW;
    }

    function isPaused() internal view returns (bool) {
        return vm.getBlockTimestamp() < pausedUntil;
    }

    /// @dev Calls as `sender` and demands that it works exactly if `allowed`.
    function act(address sender, address target, bytes memory data, bool allowed, string memory what) internal {
        vm.prank(sender);
        (bool done,) = target.call(data);
        ok(done == allowed, what);
        count(what, done);
    }

    function count(string memory what, bool done) internal {
        if (done) ++worked[what];
        else ++refused[what];
    }
}

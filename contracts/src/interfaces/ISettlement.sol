// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Signature} from "../Signed.sol";

/// @notice The escrow of one (client, node) pair; one storage slot.
struct Account {
    /// Credits in escrow (wei).
    uint96 balance;
    /// Credits that the node has collected, ever (wei); only grows.
    uint96 collected;
    /// When a thaw ends; 0 while there is none.
    uint64 thawEnd;
}

/// @notice A session key of a client; one storage slot.
struct SessionKey {
    /// Signs until then; its vouchers are collectable THAW longer.
    uint64 validUntil;
    /// False for a key that was revoked before it was ever set: it never signs.
    bool authorized;
}

/// @notice What a node asks of the chain about one client and the key that signs for it.
struct AccountView {
    uint96 balance;
    uint96 collected;
    uint64 thawEnd;
    /// The key's end; the largest value for the client's own key, 0 for a key that was never set.
    uint64 keyValidUntil;
    /// The key was revoked before it was ever set: no `Delegation` for it counts, wherever it is shown.
    bool keyRevoked;
}

/// @notice One client's newest receipt and voucher at a node; 320 bytes of calldata.
struct Item {
    address client;
    bytes32 sessionId;
    uint64 step;
    uint64 tokens;
    bytes32 head;
    uint96 total;
    bytes32 receiptR;
    bytes32 receiptVs;
    bytes32 voucherR;
    bytes32 voucherVs;
}

/// @notice The payer's ERC-2612 permit for the escrow; none if `deadline` is 0.
struct Permit {
    uint256 value;
    uint256 deadline;
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @notice The operator key's word that all up to `total` is settled and the rest of the account may go at once.
struct Release {
    /// What the node has collected, or collects by the items that come with it.
    uint96 total;
    /// The last second in which it can be used; at most an hour ahead.
    uint64 deadline;
    Signature signature;
}

/// @notice What a wallet may order by its signature, beside `Fund`.
enum Order {
    Thaw,
    CancelThaw,
    Withdraw,
    Revoke,
    Close
}

/// @notice Why an item of a settlement was skipped.
enum Skip {
    None,
    /// `total` is not above what is collected already: settled before, or stale.
    NothingOwed,
    /// The account holds nothing; collectable after a top-up.
    EmptyAccount,
    /// The receipt is not signed by the node.
    BadReceipt,
    /// The voucher is signed neither by the client nor by a key that it has set.
    UnknownKey,
    /// The key ended, or was revoked, more than THAW ago.
    KeyOver
}

/// @title Paid work: its escrow, session keys, burn and mint
interface ISettlement {
    /// @notice `amount` came into the account, from `payer`; `balance` is the new sum.
    event Funded(address indexed client, address indexed node, address indexed payer, uint256 amount, uint256 balance);
    /// @notice The account closes for new work and may be withdrawn after `thawEnd`.
    event Thawing(address indexed client, address indexed node, uint64 thawEnd);
    /// @notice The account is open again.
    event ThawCancelled(address indexed client, address indexed node);
    /// @notice All that was left went back to the client.
    event Withdrawn(address indexed client, address indexed node, uint256 amount);
    /// @notice `key` may sign for `client` until `validUntil`.
    event Authorized(address indexed client, address indexed key, uint64 validUntil);
    /// @notice `key` signs for `client` no more since `validUntil`.
    event Revoked(address indexed client, address indexed key, uint64 validUntil);
    /// @notice `burned` of the client's escrow became `minted` for the node's payout address.
    /// @param step the newest step that the voucher binds
    /// @param tokens all token positions of that session so far
    /// @param total what the client owes this node, all sessions together, ever; above the collected sum if the escrow
    /// was short
    event Settled(
        address indexed node,
        address indexed client,
        bytes32 indexed sessionId,
        uint64 step,
        uint64 tokens,
        uint256 burned,
        uint256 minted,
        uint256 total
    );
    /// @notice Item `index` of the call, of `client`, did nothing.
    event Skipped(address indexed node, address indexed client, uint256 index, Skip reason);
    /// @notice Both sides agreed to close the account, settled up to `total`; what was left is in `Withdrawn`.
    event Closed(address indexed client, address indexed node, uint96 total);

    /// @notice `fund` is paused; settling and leaving never are.
    error FundingPaused();
    /// @notice Two lists that must be equally long are not.
    error LengthMismatch(uint256 left, uint256 right);
    /// @notice An address that must not be zero is.
    error ZeroAddress();
    /// @notice A deposit of nothing.
    error ZeroAmount(uint256 index);
    /// @notice That account thaws already.
    error AlreadyThawing(uint64 thawEnd);
    /// @notice That account does not thaw.
    error NotThawing();
    /// @notice The thaw has not ended.
    error StillThawing(uint64 thawEnd);
    /// @notice Too few blocks came since the thaw began.
    error TooFewBlocks(uint256 firstBlock);
    /// @notice The order's time is over.
    error OrderOver(uint64 deadline);
    /// @notice The client has not signed this order with its next nonce, which is `nonce`.
    error BadOrder(address client, uint256 nonce);
    /// @notice The release's time is over, or lies too far ahead.
    error ReleaseOver(uint64 deadline, uint256 latest);
    /// @notice The release is not signed by the node, for this client.
    error BadRelease(address node);
    /// @notice The node has not collected what it released the rest for.
    error NotSettled(uint96 collected, uint96 total);
    /// @notice The key is zero or the client itself.
    error BadKey(address key);
    /// @notice The key was set or revoked before; a key is set once.
    error KeyKnown(address key);
    /// @notice `validUntil` is not in the next 90 days.
    error BadValidity(uint64 validUntil, uint256 latest);
    /// @notice The delegation is not signed by the client, or not for paid work.
    error BadDelegation(address client);
    /// @notice No such node.
    error NotRegistered(address node);

    /// @notice Deposits the caller's credits into `client`'s accounts at many nodes. Anyone may; only the client can
    /// take them out again. A permit that somebody already used is no error.
    /// @param nodes operator addresses; a deposit does not touch a thaw
    /// @param amounts wei of credits, one for each node
    function fund(address client, address[] calldata nodes, uint96[] calldata amounts, Permit calldata permit)
        external;

    /// @notice Deposits the client's own credits into its own accounts, by its signature over `Fund`, sent by anyone.
    /// Here as in the other calls by signature: it carries the client's next nonce, is good until `deadline`, and is 64
    /// bytes (r, vs) or 65 (r, s, v) of an externally owned account, or what the client's ERC-1271 takes.
    function fundBySig(
        address client,
        address[] calldata nodes,
        uint96[] calldata amounts,
        Permit calldata permit,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice Closes the caller's account at `node` for new work; it may be withdrawn after THAW and THAW_BLOCKS.
    function thaw(address node) external;

    /// @notice The same by the client's signature over `Thaw`.
    function thawBySig(address client, address node, uint64 deadline, bytes calldata signature) external;

    /// @notice Opens the caller's account at `node` again.
    function cancelThaw(address node) external;

    /// @notice The same by the client's signature over `CancelThaw`.
    function cancelThawBySig(address client, address node, uint64 deadline, bytes calldata signature) external;

    /// @notice Pays all that is left at `node` back to the caller, after the thaw.
    function withdraw(address node) external;

    /// @notice The same, to the client, by its signature over `Withdraw`.
    function withdrawBySig(address client, address node, uint64 deadline, bytes calldata signature) external;

    /// @notice Settles `items`, and pays all that is left in the caller's account at `node` back at once, if the node
    /// has released it and has collected what it asks for. Ends a thaw.
    /// @param items those that the node has not settled yet; none if it has
    function close(address node, Release calldata release, Item[] calldata items) external;

    /// @notice The same by the client's signature over `Close`.
    function closeBySig(
        address client,
        address node,
        Release calldata release,
        Item[] calldata items,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice Lets `key` sign sessions and vouchers for the caller, at most 90 days ahead. Once per key.
    function authorize(address key, uint64 validUntil) external;

    /// @notice The same by the client's signature over a `Delegation` for paid work, sent by anyone.
    function authorizeBySig(address client, address key, uint64 validUntil, bytes calldata signature) external;

    /// @notice Ends `key` now, for one not yet known too. What it signed stays collectable for THAW.
    function revoke(address key) external;

    /// @notice The same by the client's signature over `Revoke`.
    function revokeBySig(address client, address key, uint64 deadline, bytes calldata signature) external;

    /// @notice Burns what the vouchers owe, as far as the escrow reaches, and mints it less the fee to the node's
    /// payout address. By anyone; bad items are skipped with a reason.
    /// @return burned wei of credits destroyed
    /// @return minted wei of credits made
    function settle(address node, Item[] calldata items) external returns (uint256 burned, uint256 minted);

    /// @notice One account.
    function account(address client, address node) external view returns (Account memory);

    /// @notice The first block in which an account that thaws may be withdrawn, if its time is over too; 0 for others.
    function thawEndBlock(address client, address node) external view returns (uint256);

    /// @notice What a node asks about many clients in one call; `keys[i]` is the key that signs for `clients[i]`.
    function accounts(address node, address[] calldata clients, address[] calldata keys)
        external
        view
        returns (AccountView[] memory views);

    /// @notice The record of a session key.
    function sessionKey(address client, address key) external view returns (SessionKey memory);

    /// @notice m(c): what is minted for `collected` wei over an account's life: less the fee, rounded up.
    function mintedFor(uint96 collected) external view returns (uint256);

    /// @notice Burned less minted in `epoch` (wei), for the current epoch and the last; 0 for those before them, of which
    /// `Emission.budget` has kept what counts.
    function feesBurned(uint256 epoch) external view returns (uint256);

    /// @notice The epoch of the block's time.
    function currentEpoch() external view returns (uint256);

    /// @notice The digest of `Delegation(client, key, validUntil, paid)`.
    function delegationDigest(address client, address key, uint64 validUntil, bool paid)
        external
        view
        returns (bytes32);

    /// @notice The digest of `Thaw`, `CancelThaw`, `Withdraw`, `Close` (of the node `subject`) or `Revoke` (of the key).
    function orderDigest(Order order, address client, address subject, uint256 nonce, uint64 deadline)
        external
        view
        returns (bytes32);

    /// @notice The digest of `Fund(client, nodes, amounts, nonce, deadline)`.
    function fundDigest(
        address client,
        address[] calldata nodes,
        uint96[] calldata amounts,
        uint256 nonce,
        uint64 deadline
    ) external view returns (bytes32);

    /// @notice The digest of `Release(node, client, total, deadline)`.
    function releaseDigest(address node, address client, uint96 total, uint64 deadline)
        external
        view
        returns (bytes32);

    /// @notice The digest of `Receipt(node, client, sessionId, step, tokens, head)`.
    function receiptDigest(
        address node,
        address client,
        bytes32 sessionId,
        uint64 step,
        uint64 tokens,
        bytes32 head
    ) external view returns (bytes32);

    /// @notice The digest of `Voucher(receipt, total)`.
    function voucherDigest(bytes32 receipt, uint96 total) external view returns (bytes32);
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {Settlement} from "../../src/Settlement.sol";
import {Permit} from "../../src/interfaces/ISettlement.sol";
import {Signature} from "../../src/Signed.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @dev A contract wallet: says yes to the one digest that it was told of.
contract ContractWallet {
    bytes32 public approved;

    function approve(bytes32 digest) external {
        approved = digest;
    }

    function isValidSignature(bytes32 digest, bytes calldata) external view returns (bytes4) {
        return digest == approved ? this.isValidSignature.selector : bytes4(0xffffffff);
    }

    function run(address target, bytes calldata data) external payable returns (bytes memory) {
        (bool done, bytes memory answer) = target.call{value: msg.value}(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
        return answer;
    }

    receive() external payable {}
}

/// @dev A wallet that reverts, or burns all gas, whenever anybody asks it anything.
contract HostileWallet {
    bool public burnsGas;

    function setBurnsGas(bool on) external {
        burnsGas = on;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        while (burnsGas) {}
        revert("no");
    }

    function run(address target, bytes calldata data) external payable {
        (bool done,) = target.call{value: msg.value}(data);
        require(done, "call failed");
    }

    receive() external payable {
        revert("no coin");
    }
}

/// @dev An owner that calls back into the registry when it is paid.
contract Reentrant {
    NodeRegistry private _registry;
    address private _node;
    bool public tried;
    bool public succeeded;

    constructor(NodeRegistry registry, address node) {
        _registry = registry;
        _node = node;
    }

    function register(address payout, bytes32 peer, Signature calldata consent) external payable {
        _registry.register{value: msg.value}(_node, peer, payout, consent);
    }

    function unbond() external {
        _registry.unbond(_node);
    }

    function withdraw() external {
        _registry.withdrawStake(_node, address(this));
    }

    receive() external payable {
        tried = true;
        try _registry.withdrawStake(_node, address(this)) {
            succeeded = true;
        } catch {}
    }
}

"""How the chain says no: pallet errors after dispatch, and refusals of the transaction pool before it.

Names, positions and numbers are the chain's own, as of pallets/subtensor/src/macros/errors.rs and
``CustomTransactionError`` in common/src/transaction_error.rs of the subtensor repository (RaoFoundation/subtensor,
00cc09fe). Clients look a pallet error up by its position.
"""

from __future__ import annotations

PALLET_ERRORS: tuple[str, ...] = (
    "RootNetworkDoesNotExist",
    "InvalidIpType",
    "InvalidIpAddress",
    "InvalidPort",
    "HotKeyNotRegisteredInSubNet",
    "HotKeyAccountNotExists",
    "HotKeyNotRegisteredInNetwork",
    "NonAssociatedColdKey",
    "NotEnoughStake",
    "NotEnoughStakeToWithdraw",
    "NotEnoughStakeToSetWeights",
    "NotEnoughStakeToSetChildkeys",
    "NotEnoughBalanceToStake",
    "BalanceWithdrawalError",
    "ZeroBalanceAfterWithdrawn",
    "NeuronNoValidatorPermit",
    "WeightVecNotEqualSize",
    "DuplicateUids",
    "UidVecContainInvalidOne",
    "WeightVecLengthIsLow",
    "TooManyRegistrationsThisBlock",
    "HotKeyAlreadyRegisteredInSubNet",
    "NewHotKeyIsSameWithOld",
    "NewHotKeyNotCleanForRootSwap",
    "InvalidWorkBlock",
    "InvalidDifficulty",
    "InvalidSeal",
    "MaxWeightExceeded",
    "HotKeyAlreadyDelegate",
    "SettingWeightsTooFast",
    "IncorrectWeightVersionKey",
    "ServingRateLimitExceeded",
    "UidsLengthExceedUidsInSubNet",
    "NetworkTxRateLimitExceeded",
    "DelegateTxRateLimitExceeded",
    "HotKeySetTxRateLimitExceeded",
    "StakingRateLimitExceeded",
    "SubNetRegistrationDisabled",
    "TooManyRegistrationsThisInterval",
    "TransactorAccountShouldBeHotKey",
    "FaucetDisabled",
    "NotSubnetOwner",
    "RegistrationNotPermittedOnRootSubnet",
    "StakeTooLowForRoot",
    "AllNetworksInImmunity",
    "NotEnoughBalanceToPaySwapHotKey",
    "NotRootSubnet",
    "CanNotSetRootNetworkWeights",
    "NoNeuronIdAvailable",
    "DelegateTakeTooLow",
    "DelegateTakeTooHigh",
    "NoWeightsCommitFound",
    "InvalidRevealCommitHashNotMatch",
    "CommitRevealEnabled",
    "CommitRevealDisabled",
    "LiquidAlphaDisabled",
    "AlphaHighTooLow",
    "AlphaLowOutOfRange",
    "ColdKeyAlreadyAssociated",
    "NotEnoughBalanceToPaySwapColdKey",
    "InvalidChild",
    "DuplicateChild",
    "ProportionOverflow",
    "TooManyChildren",
    "TxRateLimitExceeded",
    "ColdkeySwapAnnouncementNotFound",
    "ColdkeySwapTooEarly",
    "ColdkeySwapReannouncedTooEarly",
    "AnnouncedColdkeyHashDoesNotMatch",
    "ColdkeySwapAlreadyDisputed",
    "NewColdKeyIsHotkey",
    "InvalidChildkeyTake",
    "TxChildkeyTakeRateLimitExceeded",
    "InvalidIdentity",
    "MechanismDoesNotExist",
    "StakeUnavailable",
    "SubnetNotExists",
    "TooManyUnrevealedCommits",
    "ExpiredWeightCommit",
    "RevealTooEarly",
    "InputLengthsUnequal",
    "CommittingWeightsTooFast",
    "AmountTooLow",
    "InsufficientLiquidity",
    "SlippageTooHigh",
    "TransferDisallowed",
    "ActivityCutoffTooLow",
    "CallDisabled",
    "FirstEmissionBlockNumberAlreadySet",
    "NeedWaitingMoreBlocksToStarCall",
    "NotEnoughAlphaOutToRecycle",
    "CannotBurnOrRecycleOnRootSubnet",
    "UnableToRecoverPublicKey",
    "InvalidRecoveredPublicKey",
    "SubtokenDisabled",
    "HotKeySwapOnSubnetIntervalNotPassed",
    "KeepStakeBlockedByCollateral",
    "SameNetuid",
    "InsufficientTaoBalance",
    "InvalidLeaseBeneficiary",
    "LeaseCannotEndInThePast",
    "LeaseNetuidNotFound",
    "LeaseDoesNotExist",
    "LeaseHasNoEndBlock",
    "LeaseHasNotEnded",
    "Overflow",
    "BeneficiaryDoesNotOwnHotkey",
    "ExpectedBeneficiaryOrigin",
    "AdminActionProhibitedDuringWeightsWindow",
    "SymbolDoesNotExist",
    "SymbolAlreadyInUse",
    "IncorrectCommitRevealVersion",
)

# CustomTransactionError: what the pool answers with where a call's guard refuses. Any other error is BadRequest.
_CUSTOM_CODES = {
    "AmountTooLow": 1,
    "NotEnoughStakeToSetWeights": 1,
    "NotEnoughBalanceToStake": 2,
    "SubnetNotExists": 3,
    "HotKeyAccountNotExists": 4,
    "CommittingWeightsTooFast": 6,
    "SettingWeightsTooFast": 6,
    "HotKeyNotRegisteredInNetwork": 10,
    "InvalidIpAddress": 11,
    "ServingRateLimitExceeded": 12,
    "InvalidPort": 13,
    "HotKeyNotRegisteredInSubNet": 19,
    "NonAssociatedColdKey": 25,
}
_BAD_REQUEST = 255

# sc-rpc-api's error numbers for the author_* methods.
BAD_FORMAT = 1001
INVALID = 1010
UNKNOWN_VALIDITY = 1011
ALREADY_IMPORTED = 1013
PRIORITY_TOO_LOW = 1014
IMMEDIATELY_DROPPED = 1016

_MESSAGES = {
    BAD_FORMAT: "Extrinsic has invalid format",
    INVALID: "Invalid Transaction",
    UNKNOWN_VALIDITY: "Unknown Transaction Validity",
    ALREADY_IMPORTED: "Transaction Already Imported",
    PRIORITY_TOO_LOW: "Priority is too low",
    IMMEDIATELY_DROPPED: "Immediately Dropped",
}


class DispatchError(Exception):
    """A call was refused with one of :data:`PALLET_ERRORS`; the extrinsic is in the block all the same."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.position = PALLET_ERRORS.index(name)


class PoolError(Exception):
    """The pool refused a transaction, so it will be in no block: JSON-RPC error ``code``, ``message`` and ``data``."""

    def __init__(self, code: int, data: str) -> None:
        super().__init__(f"{_MESSAGES[code]}: {data}")
        self.code = code
        self.message = _MESSAGES[code]
        self.data = data

    @classmethod
    def from_guard(cls, error: DispatchError) -> PoolError:
        """What the pool says where a guard finds ``error`` before dispatch."""
        return cls(INVALID, f"Custom error: {_CUSTOM_CODES.get(error.name, _BAD_REQUEST)}")


def ensure(condition: bool, name: str) -> None:
    """Raise the pallet error ``name`` unless the condition holds."""
    if not condition:
        raise DispatchError(name)

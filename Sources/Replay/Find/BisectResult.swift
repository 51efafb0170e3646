import Trace
import VMCore

/// What a bisection found.
public struct BisectResult: Sendable {
    /// The first exit at which the condition holds, and the last before it at which it doesn't.
    public internal(set) var first: ExitNumber
    public internal(set) var lastGood: ExitNumber
    /// The first one itself.
    public internal(set) var event: TraceEvent?
    /// The instruction after which it held; nil where the engine can't step there, which `obstacle` explains.
    public internal(set) var instruction: SteppedInstruction?
    public internal(set) var obstacle: String?
    /// The last interrupt that entered before it held.
    public internal(set) var interrupt: TraceEvent?
    /// The interrupts that entered between the two exits.
    public internal(set) var entered: [TraceEvent] = []
    /// Exits between the two at which a command couldn't tell.
    public internal(set) var unknown: [ExitNumber] = []
    /// Checkpoints at which the condition isn't what it should be if it became true once and stayed so.
    public internal(set) var contradictions: [ExitNumber] = []
    /// Of an exhaustive search: the exits at which the answer changed.
    public internal(set) var flips: [ExitNumber] = []
    public internal(set) var isExhaustive = false

    /// Movements for which the guest ran.
    public internal(set) var replays = 0
    public internal(set) var exitsReplayed: UInt64 = 0
    public internal(set) var asked = 0
    public internal(set) var seconds = 0.0
    /// Checkpoints that were searched, and exits between two of them.
    public internal(set) var checkpoints = 0
    public internal(set) var exits: UInt64 = 0

    init(first: ExitNumber, lastGood: ExitNumber) {
        self.first = first
        self.lastGood = lastGood
    }

    /// The most replays that a search by halving takes: log2 of the checkpoints and of the exits between two, one for
    /// the end and one for the instructions.
    public var bound: Int { Self.halvings(UInt64(checkpoints) + 1) + Self.halvings(exits) + 2 }

    private static func halvings(_ count: UInt64) -> Int {
        count <= 1 ? 0 : UInt64.bitWidth - (count - 1).leadingZeroBitCount
    }

    public func lines(trace: String, _ symbols: SymbolTable, _ style: Style) -> [String] {
        var lines = [
            style.bold("exit \(first.rawValue)") + (event.map { ": \($0.text)" } ?? "")
                + style.dim("  (not yet at exit \(lastGood.rawValue))")
        ]
        if let instruction {
            lines.append(
                "instruction \(style.bold(instruction.position.description)) at \(symbols.text(instruction.address)): "
                    + instruction.text)
        } else if let obstacle {
            lines.append("instruction not known: \(obstacle)")
        }
        if instruction == nil, let last = entered.last {
            lines.append("between the two exits: " + last.text(symbols))
        }
        if let interrupt {
            lines.append("last interrupt before it: \(interrupt.text(symbols)), after exit \(interrupt.exit.rawValue)")
            if let instruction, interrupt.anchor?.rip == instruction.address {
                lines.append("it entered right before this very instruction")
            }
        }
        if !unknown.isEmpty {
            lines.append(
                "the command couldn't tell at \(unknown.count) exits from \(unknown[0].rawValue) on: it may be any of them"
            )
        }
        if isExhaustive {
            lines.append(
                flips.count == 1
                    ? "it changes nowhere else"
                    : "it changes at \(flips.count) exits: "
                        + flips.prefix(20).map { "\($0.rawValue)" }.joined(separator: ", ")
                        + (flips.count > 20 ? " …" : ""))
        } else if !contradictions.isEmpty {
            lines.append(
                "warning: the condition changes more than once; at exit \(contradictions[0].rawValue) it "
                    + "\(contradictions[0] >= first ? "doesn't hold" : "holds"). --exhaustive asks at every exit")
        }
        lines.append(
            style.dim(
                "\(asked) questions, replays: \(replays), exits replayed: \(exitsReplayed), "
                    + "\((seconds * 100).rounded() / 100) s"))
        let place = instruction?.position ?? Position(exit: first)
        lines.append(
            style.dim("see it: vmrr state \(trace) --at \(place)    vmrr replay \(trace) --to \(first.rawValue)"))
        return lines
    }

    public func json(_ symbols: SymbolTable) -> JSON {
        [
            "exit": JSON(first.rawValue), "last_good": JSON(lastGood.rawValue), "event": event?.json ?? .null,
            "instruction": instruction?.json(symbols) ?? .null, "obstacle": JSON(obstacle),
            "interrupt": interrupt?.json ?? .null, "entered": .array(entered.map(\.json)),
            "unknown": .array(unknown.map { JSON($0.rawValue) }),
            "contradictions": .array(contradictions.map { JSON($0.rawValue) }),
            "flips": isExhaustive ? .array(flips.map { JSON($0.rawValue) }) : .null,
            "asked": JSON(asked), "replays": JSON(replays), "replay_bound": isExhaustive ? .null : JSON(bound),
            "exits_replayed": JSON(exitsReplayed), "checkpoints": JSON(checkpoints), "exits_between": JSON(exits),
            "seconds": .number(seconds),
        ]
    }
}

extension TraceEvent {
    /// An interrupt in words, its place with its symbol.
    fileprivate func text(_ symbols: SymbolTable) -> String {
        identity.text + (anchor.map { " at RIP \(symbols.text($0.rip))" } ?? "")
    }
}

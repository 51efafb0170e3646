import Trace
import VMCore

/// Decides when the next checkpoint is due.
///
/// A checkpoint is taken at an exit. A guest that makes none for long gets its checkpoint at its next one: nothing could
/// be sought in between that the checkpoint before doesn't reach as well.
public struct CheckpointPolicy: Equatable, Sendable {
    public enum Spacing: Equatable, Sendable {
        /// Every 250 ms, and after 5,000 exits where 50 ms have gone by.
        case automatic
        case time(Nanoseconds)
        case exits(UInt64)
        /// None but the one at the start.
        case never
    }

    public let spacing: Spacing

    /// Of the run's time, checkpoints take a part in so many: 5 per cent.
    static let share: UInt64 = 20
    /// A guest with few exits replays at its own speed, so this bounds how long a seek takes.
    private static let interval = Nanoseconds.milliseconds(250)
    /// An exit costs 8 to 30 µs to replay: so many take some 100 ms.
    private static let exits: UInt64 = 5_000
    /// An exit costs a fast host 1 µs, so 5,000 of them would pay for a checkpoint every 5 ms.
    private static let shortest = Nanoseconds.milliseconds(50)

    private var last = Nanoseconds(0)
    private var lastExit = ExitNumber.start
    /// What a checkpoint costs: a mean in which the latest one weighs a quarter, and the first all of it.
    private var cost = Nanoseconds(0)
    /// The widest distance to which the limit on their cost has spread checkpoints; nil where it never has.
    public private(set) var spreadTo: Nanoseconds?

    public init(_ spacing: Spacing = .automatic) { self.spacing = spacing }

    /// The recording begins with a checkpoint at `exit`, at `now`.
    mutating func begin(at exit: ExitNumber, now: Nanoseconds) {
        last = now
        lastExit = exit
    }

    /// Whether to take a checkpoint at `exit`, at `now` of machine time. Neither goes backwards.
    public mutating func isDue(at exit: ExitNumber, now: Nanoseconds) -> Bool {
        let elapsed = now - last
        switch spacing {
        case .automatic:
            guard elapsed >= Self.shortest else { return false }
            guard elapsed >= Self.interval || exit.rawValue - lastExit.rawValue >= Self.exits else { return false }
        case .time(let span):
            guard elapsed >= span else { return false }
        case .exits(let count):
            guard exit.rawValue - lastExit.rawValue >= count else { return false }
        case .never:
            return false
        }
        let least = Nanoseconds(Self.share &* cost.rawValue)
        if elapsed >= least { return true }
        if least > spreadTo ?? Nanoseconds(0) { spreadTo = least }
        return false
    }

    /// Whether a recording that ends at `exit` is to end with a checkpoint: the last one isn't there already.
    public func isWanted(at exit: ExitNumber) -> Bool { spacing != .never && exit > lastExit }

    /// A checkpoint was taken at `exit`, at `now`, and checkpoints kept the guest from running for `pause`.
    public mutating func took(_ pause: Nanoseconds, at exit: ExitNumber, now: Nanoseconds) {
        cost = cost.rawValue == 0 ? pause : Nanoseconds((3 * cost.rawValue + pause.rawValue) / 4)
        begin(at: exit, now: now)
    }

    /// What the trace says of it.
    public var description: CheckpointSpacing { CheckpointSpacing(policy: spacing.text, spreadTo: spreadTo) }
}

extension CheckpointPolicy.Spacing {
    /// Reads `250ms`, `10000exits` or `none`.
    public init?(parsing text: String) {
        if text == "none" {
            self = .never
        } else if let number = ["exits", "exit"].first(where: text.hasSuffix).map({ text.dropLast($0.count) }) {
            guard let count = UInt64(number), count > 0 else { return nil }
            self = .exits(count)
        } else {
            guard let span = Nanoseconds(parsing: text), span.rawValue > 0 else { return nil }
            self = .time(span)
        }
    }

    var text: String {
        switch self {
        case .automatic: "automatic"
        case .time(let span) where span.rawValue % 1_000_000 == 0: "\(span.rawValue / 1_000_000)ms"
        case .time(let span): "\(span.rawValue)ns"
        case .exits(let count): "\(count)exits"
        case .never: "none"
        }
    }
}

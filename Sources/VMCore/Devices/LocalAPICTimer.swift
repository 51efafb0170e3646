/// The local APIC's timer: a 32-bit down-counter behind a divider (SDM Vol. 3A, 11.5.4).
///
/// The input clock is 1 GHz: one tick is `divisor` nanoseconds. One-shot and periodic modes exist, the TSC-deadline
/// mode does not. The count is computed from the moment of loading, so time may pass unseen.
public struct LocalAPICTimer: Codable, Equatable, Sendable {
    /// The initial-count register: what a periodic timer reloads.
    public internal(set) var initialCount: UInt32 = 0
    /// The divide-configuration register; bits 3, 1 and 0 choose the divisor.
    public internal(set) var divideConfiguration: UInt32 = 0
    /// True from a write of a non-zero initial count until a one-shot expires or a zero is written.
    public internal(set) var isRunning = false
    /// The count that the timer had at `since`.
    var countThen: UInt32 = 0
    var since = Nanoseconds(0)

    static let divideConfigurationBits: UInt32 = 0b1011

    public init() {}

    /// The nanoseconds that one count takes: 1, 2, 4, 8, 16, 32, 64 or 128.
    public var divisor: UInt64 {
        let code = (divideConfiguration & 0b11) | ((divideConfiguration >> 1) & 0b100)
        return 1 &<< UInt64((code &+ 1) & 0b111)
    }

    /// The moment at which the count reaches 0 next, nil for a stopped timer.
    public var expiry: Nanoseconds? {
        isRunning ? since + Nanoseconds(UInt64(countThen) &* divisor) : nil
    }

    /// The current-count register at `now`, for a timer that has been advanced to `now`.
    public func currentCount(at now: Nanoseconds) -> UInt32 {
        guard isRunning else { return 0 }
        let counted = (now - since).rawValue / divisor
        return counted >= UInt64(countThen) ? 0 : countThen &- UInt32(truncatingIfNeeded: counted)
    }

    /// Writes the initial count, which starts the timer; 0 stops it.
    mutating func start(_ count: UInt32, at now: Nanoseconds) {
        initialCount = count
        countThen = count
        since = now
        isRunning = count != 0
    }

    /// Changes the divisor of a timer that may run; the count goes on from where it is.
    mutating func setDivideConfiguration(_ value: UInt32, at now: Nanoseconds) {
        countThen = currentCount(at: now)
        since = now
        divideConfiguration = value & Self.divideConfigurationBits
    }

    /// Brings the timer to `now`; true if it expired on the way, once or more often.
    ///
    /// A periodic timer that is advanced late keeps its phase: the missed periods are left out, not postponed.
    mutating func advance(to now: Nanoseconds, isPeriodic: Bool) -> Bool {
        guard let expiry, now >= expiry else { return false }
        let period = UInt64(initialCount) &* divisor
        guard isPeriodic, period != 0 else {
            isRunning = false
            countThen = 0
            return true
        }
        let late = (now - expiry).rawValue
        since = Nanoseconds(now.rawValue &- late % period)
        countThen = initialCount
        return true
    }
}

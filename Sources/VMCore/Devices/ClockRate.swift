/// Exact conversion between machine time and the pulses of a clock of fixed frequency.
///
/// Both directions go through 128 bits, so nothing drifts however long a machine runs: the number of pulses depends on
/// the moment alone, not on how often anyone asked.
public struct ClockRate: Hashable, Sendable {
    /// Pulses a second; at most 10⁹.
    public let hertz: UInt64

    static let nanosecondsPerSecond: UInt64 = 1_000_000_000

    public init(hertz: UInt64) {
        precondition(hertz > 0 && hertz <= Self.nanosecondsPerSecond)
        self.hertz = hertz
    }

    /// Whole pulses from moment 0 up to and including `now`.
    public func ticks(at now: Nanoseconds) -> UInt64 {
        // hertz <= 10⁹ keeps the high word below the divisor: the division can't overflow.
        let product = now.rawValue.multipliedFullWidth(by: hertz)
        guard product.high < Self.nanosecondsPerSecond else { return now.rawValue }
        return Self.nanosecondsPerSecond.dividingFullWidth(product).quotient
    }

    /// The first moment at which `ticks(at:)` reaches `tick`; nil where that lies beyond the end of machine time.
    public func time(ofTick tick: UInt64) -> Nanoseconds? {
        let product = tick.multipliedFullWidth(by: Self.nanosecondsPerSecond)
        guard product.high < hertz else { return nil }
        let (quotient, remainder) = hertz.dividingFullWidth(product)
        let (rounded, overflow) = quotient.addingReportingOverflow(remainder == 0 ? 0 : 1)
        return overflow ? nil : Nanoseconds(rounded)
    }
}

extension Nanoseconds {
    /// This moment as a deadline after `now`: what is due already is due right away, never in the past.
    func asDeadline(after now: Nanoseconds) -> Nanoseconds {
        self > now ? self : Nanoseconds(now.rawValue &+ 1)
    }
}

/// Machine time of a live machine: what the host's clock counts, or what the guest's instructions add up to.
///
/// With instructions as the clock the same input gives the same run, bit for bit, on a host of any speed: a timer is due
/// at an instruction, and a guest that waits in HLT is taken to the next moment at which something is due.
public struct MachineClock {
    public enum Source: Equatable, Sendable {
        case host
        /// So many millions of instructions are a second: only with an engine that counts them.
        case instructions(millionsPerSecond: UInt64)

        /// Whether a timestamp counter at 1 GHz counts instructions.
        public var isCounter: Bool { self == .instructions(millionsPerSecond: 1000) }
    }

    /// The host's clock counts in steps of so many nanoseconds, a power of two: below what an exit's time varies by, and finer than
    /// any device counts but the local APIC's timer and the timestamp counter. What is finer is noise, of which each moment in a
    /// trace would cost six bits more: a clock read of a booting Linux took 2.4 bytes, and takes 1.8.
    package static let resolution: UInt64 = 64

    /// One nanosecond each: about what a processor of some years ago takes.
    public static let defaultMillionsPerSecond: UInt64 = 1000

    public let source: Source
    /// The host's time, or the count of instructions, at which machine time was `origin`.
    private var start: UInt64
    private var origin: Nanoseconds

    /// A clock that shows `now` as it is made, or the first moment after it that the host's clock counts.
    public init(_ source: Source, now: Nanoseconds, engine: any Engine) {
        self.source = source
        switch source {
        case .host: (start, origin) = (hostTime().rawValue, Self.counted(from: now))
        case .instructions: (start, origin) = (engine.retired?.rawValue ?? 0, now)
        }
    }

    package func now(_ engine: any Engine) -> Nanoseconds {
        switch source {
        case .host: return Nanoseconds((origin.rawValue &+ hostTime().rawValue &- start) & ~(Self.resolution - 1))
        case .instructions(let rate):
            let count = (engine.retired?.rawValue ?? 0) &- start
            return Nanoseconds(origin.rawValue &+ count &* 1000 / rate)
        }
    }

    /// Has the engine come back at `moment`, and sooner only where it doesn't lie ahead; nil for never. `limit` is a moment
    /// of the host's clock at which it comes back as well.
    func arm(_ engine: any Engine, at moment: Nanoseconds?, limit: Nanoseconds?) {
        switch source {
        case .host:
            let wanted = moment.map { hostMoment($0) }
            engine.armKick(at: [wanted, limit].compactMap { $0 }.min())
        case .instructions(let rate):
            engine.armKick(at: limit)
            let count = moment.map { moment in
                let product = (moment - origin).rawValue.multipliedFullWidth(by: rate)
                let (least, rest) = product.high < 1000 ? UInt64(1000).dividingFullWidth(product) : (.max / 2, 0)
                return max(start &+ least &+ (rest > 0 ? 1 : 0), (engine.retired?.rawValue ?? 0) &+ 1)
            }
            engine.armKick(atInstruction: count.map { InstructionCount($0) })
        }
    }

    /// The moment of the host's clock from which on `now` is `moment` or later; `source` is the host.
    package func hostMoment(_ moment: Nanoseconds) -> Nanoseconds {
        Nanoseconds(start &+ Self.counted(from: moment).rawValue &- origin.rawValue)
    }

    /// The first moment from `moment` on that the host's clock counts.
    private static func counted(from moment: Nanoseconds) -> Nanoseconds {
        Nanoseconds(moment.rawValue > .max - resolution ? moment.rawValue : (moment.rawValue + resolution - 1) & ~(resolution - 1))
    }

    /// Takes time to `moment` without an instruction; `source` is the instructions.
    mutating func skip(to moment: Nanoseconds, _ engine: any Engine) {
        guard moment > now(engine) else { return }
        origin = moment
        start = engine.retired?.rawValue ?? 0
    }
}

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

    /// One nanosecond each: about what a processor of some years ago takes.
    public static let defaultMillionsPerSecond: UInt64 = 1000

    public let source: Source
    /// The host's time, or the count of instructions, at which machine time was `origin`.
    private var start: UInt64
    private var origin: Nanoseconds

    /// A clock that shows `now` as it is made.
    public init(_ source: Source, now: Nanoseconds, engine: any Engine) {
        self.source = source
        origin = now
        switch source {
        case .host: start = hostTime().rawValue
        case .instructions: start = engine.retired?.rawValue ?? 0
        }
    }

    func now(_ engine: any Engine) -> Nanoseconds {
        switch source {
        case .host: return Nanoseconds(origin.rawValue &+ hostTime().rawValue &- start)
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

    /// A moment of the host's clock; `source` is the host.
    func hostMoment(_ moment: Nanoseconds) -> Nanoseconds { Nanoseconds(start &+ moment.rawValue &- origin.rawValue) }

    /// Takes time to `moment` without an instruction; `source` is the instructions.
    mutating func skip(to moment: Nanoseconds, _ engine: any Engine) {
        guard moment > now(engine) else { return }
        origin = moment
        start = engine.retired?.rawValue ?? 0
    }
}

/// The programmable interval timer: three 16-bit counters at ports 0x40 to 0x43.
///
/// Intel 8254 data sheet (order number 231164), "Programming the 8254" and "Mode Definitions". On a PC all three
/// counters are clocked at 1.193182 MHz; counter 0 drives IRQ 0, counter 1 once timed DRAM refresh, counter 2 the
/// speaker, and its gate and output are wired to port 0x61.
///
/// Where the data sheet leaves things open:
/// - A count of 1 is illegal in modes 2 and 3; here OUT then stays high.
/// - A BCD count with a digit above 9 counts as the sum of its digits' weights, modulo 10,000.
/// - A counter without a loaded count stands still.
/// - At power-on the counters hold what a BIOS leaves in them: 0 and 2 in mode 3 with a count of 65,536, 1 in mode 2
///   with 18; gate 2 is low.
public struct PIT8254: BytePortDevice {
    public static let clock = ClockRate(hertz: 1_193_182)

    /// Offset of the control word register; offsets 0 to 2 are the counters.
    private static let controlWord: UInt16 = 3

    /// Fields of the control word, figure 7, and of the read-back command, figure 10.
    private enum Control {
        static let readBack: UInt8 = 0b11
        static let readBackNoCount: UInt8 = 0b0010_0000
        static let readBackNoStatus: UInt8 = 0b0001_0000
    }

    private var counter0: PITCounter
    private var counter1: PITCounter
    private var counter2: PITCounter

    /// Rising edges of OUT0 that nobody has taken yet.
    private var pendingTicks: UInt64 = 0

    public init() {
        counter0 = PITCounter(mode: .squareWave, count: 0, gate: true)
        counter1 = PITCounter(mode: .rateGenerator, count: 18, gate: true)
        counter2 = PITCounter(mode: .squareWave, count: 0, gate: false)
    }

    /// Back to the counters of power-on. A PC's timer has no reset pin; it is its firmware that does this.
    public mutating func reset(at now: Nanoseconds) {
        self = PIT8254()
        for channel in 0..<3 { update(channel, at: now) { _ in 0 } }
        pendingTicks = 0
    }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        guard let pulses = counter0.pulsesToRisingEdge else { return nil }
        return Self.clock.time(ofTick: counter0.clock &+ pulses)?.asDeadline(after: now)
    }

    public mutating func advance(to now: Nanoseconds) {
        count(counter0.advance(to: Self.clock.ticks(at: now)))
    }

    /// The number of rising edges of OUT0 since the last call, up to the last `advance` or access; each is an IRQ 0.
    ///
    /// An edge is an edge whatever caused it: a control word that lifts OUT0 gives one too.
    public mutating func takeTicks() -> Int {
        defer { pendingTicks = 0 }
        return Int(clamping: pendingTicks)
    }

    /// The level of OUT of counter `channel` (0 to 2) at `now`, which is not before the last access.
    public func output(_ channel: Int, at now: Nanoseconds) -> Bool {
        var counter = self[channel]
        _ = counter.advance(to: Self.clock.ticks(at: now))
        return counter.out
    }

    /// Drives the GATE input of counter `channel` (0 to 2).
    public mutating func setGate(_ channel: Int, _ level: Bool, at now: Nanoseconds) {
        update(channel, at: now) { $0.setGate(level) }
    }

    public mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8 {
        let offset = offset & 3
        guard offset != Self.controlWord else { return 0 }
        var byte: UInt8 = 0
        update(Int(offset), at: now) {
            byte = $0.read()
            return 0
        }
        return byte
    }

    public mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds) {
        let offset = offset & 3
        guard offset == Self.controlWord else { return update(Int(offset), at: now) { $0.write(value) } }
        let select = value >> 6
        if select == Control.readBack {
            for channel in 0..<3 where value & (2 << UInt8(channel)) != 0 {
                update(channel, at: now) {
                    if value & Control.readBackNoCount == 0 { $0.latchCount() }
                    if value & Control.readBackNoStatus == 0 { $0.latchStatus() }
                    return 0
                }
            }
        } else {
            update(Int(select), at: now) { $0.writeControl(value) }
        }
    }

    /// Brings a counter to `now` and changes it; `body` returns the rising edges of OUT that it made.
    private mutating func update(_ channel: Int, at now: Nanoseconds, _ body: (inout PITCounter) -> UInt64) {
        var counter = self[channel]
        let edges = counter.advance(to: Self.clock.ticks(at: now)) &+ body(&counter)
        self[channel] = counter
        if channel == 0 { count(edges) }
    }

    private mutating func count(_ edges: UInt64) {
        let (sum, overflow) = pendingTicks.addingReportingOverflow(edges)
        pendingTicks = overflow ? .max : sum
    }

    private subscript(channel: Int) -> PITCounter {
        get {
            switch channel {
            case 0: counter0
            case 1: counter1
            default: counter2
            }
        }
        set {
            switch channel {
            case 0: counter0 = newValue
            case 1: counter1 = newValue
            default: counter2 = newValue
            }
        }
    }
}

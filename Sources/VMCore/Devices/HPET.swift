/// The high precision event timer: a 64-bit counter and three comparators, memory-mapped at 0xFED00000.
///
/// IA-PC HPET Specification 1.0a, section 2.3 "Register Descriptions" and 2.2 "Theory of Operation". Timer messages (FSB
/// delivery) are not offered.
///
/// The counter runs at 10 MHz, the slowest that the specification allows: of all clock reads that a guest makes, each
/// carries as little as possible into a trace, and to a guest the period is a number in a register anyway.
///
/// Where the specification leaves things open:
/// - A comparator matches when the counter has its value; one that is set to the counter's present value matches at once,
///   one that is set to a value gone by matches when the counter has wrapped around.
/// - A periodic timer without a period is a one-shot.
/// - Several matches that are found together make one edge.
/// - A partial write changes the bytes written; a write of the counter moves it also while it runs.
/// - An edge leaves the output high until the next one, which falls and rises.
public struct HPET: Device {
    public static let address = GuestPhysicalAddress(0xfed0_0000)
    /// Bytes of the register block.
    public static let size: UInt64 = 0x400
    public static let clock = ClockRate(hertz: 10_000_000)
    static let timerCount = 3

    /// The low half of the capabilities register, which the ACPI table repeats: revision 1, three timers, a 64-bit
    /// counter, legacy replacement, vendor 0x8086.
    public static let identification: UInt32 = 0x8086_a201

    /// Femtoseconds that the counter takes for one count.
    private static let period: UInt64 = 1_000_000_000_000_000 / clock.hertz

    /// The I/O APIC pins that a timer may be routed to: those that no other device has.
    static let routes: UInt32 = 0x00ff_0000

    private enum Register {
        static let capabilities: UInt64 = 0x00
        static let configuration: UInt64 = 0x10
        static let status: UInt64 = 0x20
        static let counter: UInt64 = 0xf0
        static let timers: UInt64 = 0x100
        /// Within a timer's block of 32 bytes.
        static let timerConfiguration: UInt64 = 0x00
        static let timerComparator: UInt64 = 0x08
    }

    private enum Configuration {
        static let enable: UInt64 = 0b01
        static let legacyReplacement: UInt64 = 0b10
        static let writable = enable | legacyReplacement
    }

    /// Bits of a timer's configuration register (2.3.8).
    private enum TimerBit {
        static let level: UInt64 = 1 << 1
        static let interruptEnable: UInt64 = 1 << 2
        static let periodic: UInt64 = 1 << 3
        static let periodicCapable: UInt64 = 1 << 4
        static let is64Bit: UInt64 = 1 << 5
        static let setsValue: UInt64 = 1 << 6
        static let in32BitMode: UInt64 = 1 << 8
        static let routeShift: UInt64 = 9
        static let route: UInt64 = 0x1f << routeShift
        static let writable = level | interruptEnable | periodic | setsValue | in32BitMode | route
        static let capabilities = periodicCapable | is64Bit | UInt64(HPET.routes) << 32
    }

    /// One comparator with its output.
    struct Timer: Codable, Equatable, Sendable {
        /// The writable bits of the configuration register.
        var configuration: UInt64 = 0
        var comparator: UInt64 = .max
        /// What is added to the comparator of a periodic timer with each match.
        var period: UInt64 = 0
        /// The first value of the counter that the comparator hasn't been compared with yet.
        var next: UInt64 = 0
        /// Edges that the output is to make.
        var hasEdge = false
        /// Whether the output is high by an edge.
        var isHigh = false

        func has(_ bit: UInt64) -> Bool { configuration & bit != 0 }
        var mask: UInt64 { has(TimerBit.in32BitMode) ? 0xffff_ffff : .max }
        var isPeriodic: Bool { has(TimerBit.periodic) && period & mask != 0 }
        var pin: Int { Int(configuration >> TimerBit.routeShift & 0x1f) }

        /// How many counts after `next` the comparator matches.
        var distance: UInt64 { (comparator &- next) & mask }

        /// Compares with all values of the counter up to `counter`, where `span` values after `next` are due.
        ///
        /// - Returns: whether there was a match.
        mutating func run(to counter: UInt64) -> Bool {
            let span = counter &- next
            let distance = distance
            guard span < 1 << 63, distance <= span else { return false }
            if isPeriodic {
                let period = period & mask
                comparator = (comparator &+ (((span &- distance) / period) &+ 1) &* period) & mask
            }
            next = counter &+ 1
            return true
        }
    }

    private var configuration: UInt64 = 0
    /// One bit a level-triggered timer that has matched.
    private var status: UInt64 = 0
    /// The counter at the tick `since` of its clock, and until it is started.
    private var counterThen: UInt64 = 0
    private var since: UInt64 = 0
    private var timer0 = Timer()
    private var timer1 = Timer()
    private var timer2 = Timer()

    public init() {}

    // MARK: Outputs

    /// Whether timer 0 has IRQ 0 in the interval timer's place, and timer 1 IRQ 8 in the clock's (2.2.1, "Legacy
    /// replacement").
    @inline(__always) public var replacesLegacyTimers: Bool { configuration == Configuration.writable }

    /// Whether there is anything for `takeEdges`.
    @inline(__always) public var hasEdges: Bool { timer0.hasEdge || timer1.hasEdge || timer2.hasEdge }

    /// The timers, a bit each, whose outputs have made a rising edge since the last call.
    public mutating func takeEdges() -> UInt8 {
        defer { (timer0.hasEdge, timer1.hasEdge, timer2.hasEdge) = (false, false, false) }
        return (timer0.hasEdge ? 1 : 0) | (timer1.hasEdge ? 2 : 0) | (timer2.hasEdge ? 4 : 0)
    }

    /// The output of timer `index` (0 to 2): high by its last edge, or while a level-triggered one waits to be served.
    public func output(_ index: Int) -> Bool {
        let timer = self[index]
        guard configuration & Configuration.enable != 0, timer.has(TimerBit.interruptEnable) else { return false }
        return timer.has(TimerBit.level) ? status >> UInt64(index) & 1 != 0 : timer.isHigh
    }

    /// The I/O APIC pin that timer `index` drives; nil where it drives a legacy line or no pin that it can.
    public func pin(_ index: Int) -> Int? {
        let pin = self[index].pin
        return replacesLegacyTimers && index < 2 || Self.routes >> UInt32(pin) & 1 == 0 ? nil : pin
    }

    // MARK: Time

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? { nextDeadline(after: now, timer0: true) }

    /// With `timer0` false, the next moment that isn't the first timer's.
    func nextDeadline(after now: Nanoseconds, timer0 counts: Bool) -> Nanoseconds? {
        guard configuration & Configuration.enable != 0 else { return nil }
        var first: UInt64?
        for index in (counts ? 0 : 1)..<Self.timerCount {
            let timer = self[index]
            guard timer.has(TimerBit.interruptEnable),
                !(timer.has(TimerBit.level) && status >> UInt64(index) & 1 != 0)
            else { continue }
            let (sinceThen, early) = (timer.next &- counterThen).addingReportingOverflow(timer.distance)
            let (tick, late) = since.addingReportingOverflow(sinceThen)
            if !early, !late { first = min(first ?? tick, tick) }
        }
        return first.flatMap { Self.clock.time(ofTick: $0) }?.asDeadline(after: now)
    }

    public mutating func advance(to now: Nanoseconds) {
        guard configuration & Configuration.enable != 0 else { return }
        let counter = counter(at: now)
        for index in 0..<Self.timerCount where self[index].run(to: counter) { match(index) }
    }

    private mutating func match(_ index: Int) {
        if self[index].has(TimerBit.level) {
            status |= 1 << UInt64(index)
        } else if self[index].has(TimerBit.interruptEnable) {
            self[index].hasEdge = true
            self[index].isHigh = true
        }
    }

    private func counter(at now: Nanoseconds) -> UInt64 {
        guard configuration & Configuration.enable != 0 else { return counterThen }
        return counterThen &+ (Self.clock.ticks(at: now) &- since)
    }

    /// Lets the counter go on from `value`; every comparator looks at that value next.
    private mutating func setCounter(_ value: UInt64, at now: Nanoseconds) {
        counterThen = value
        since = Self.clock.ticks(at: now)
        for index in 0..<Self.timerCount { self[index].next = value }
    }

    // MARK: Registers

    /// Reads `size` bytes (1 to 8) at `offset` in the block; what reaches into the next register reads as zeros.
    public mutating func readMMIO(offset: UInt64, size: Int, at now: Nanoseconds) -> UInt64 {
        advance(to: now)
        let value = register(offset & ~7, at: now) >> ((offset & 7) &* 8)
        return size >= 8 ? value : value & (1 &<< UInt64(max(size, 0) &* 8) &- 1)
    }

    /// Writes the low `size` bytes (1 to 8) of `value` at `offset` in the block.
    public mutating func writeMMIO(offset: UInt64, size: Int, value: UInt64, at now: Nanoseconds) {
        advance(to: now)
        let shift = (offset & 7) &* 8
        let bytes: UInt64 = size >= 8 ? .max : 1 &<< UInt64(max(size, 0) &* 8) &- 1
        let written = bytes << shift
        let merge = { (old: UInt64) in old & ~written | (value << shift) & written }
        switch offset & ~7 {
        case Register.configuration: setConfiguration(merge(configuration) & Configuration.writable, at: now)
        case Register.status: status &= ~((value << shift) & written)
        case Register.counter: setCounter(merge(counter(at: now)), at: now)
        case let other where other >= Register.timers: writeTimer(other &- Register.timers, merge, at: now)
        default: break
        }
        advance(to: now)
    }

    private func register(_ offset: UInt64, at now: Nanoseconds) -> UInt64 {
        switch offset {
        case Register.capabilities: return Self.period << 32 | UInt64(Self.identification)
        case Register.configuration: return configuration
        case Register.status: return status
        case Register.counter: return counter(at: now)
        default: break
        }
        guard offset >= Register.timers, let index = Self.timer(at: offset &- Register.timers) else { return 0 }
        switch offset & 0x1f {
        case Register.timerConfiguration: return self[index].configuration | TimerBit.capabilities
        case Register.timerComparator: return self[index].comparator
        default: return 0
        }
    }

    private static func timer(at offset: UInt64) -> Int? {
        offset < UInt64(timerCount) * 0x20 ? Int(offset / 0x20) : nil
    }

    private mutating func setConfiguration(_ value: UInt64, at now: Nanoseconds) {
        let counter = counter(at: now)
        let starts = (configuration ^ value) & Configuration.enable != 0
        configuration = value
        if starts { setCounter(counter, at: now) }
    }

    private mutating func writeTimer(_ offset: UInt64, _ merge: (UInt64) -> UInt64, at now: Nanoseconds) {
        guard let index = Self.timer(at: offset) else { return }
        var timer = self[index]
        switch offset & 0x1f {
        case Register.timerConfiguration:
            timer.configuration = merge(timer.configuration) & TimerBit.writable
            timer.comparator &= timer.mask
            if timer.has(TimerBit.level) || !timer.has(TimerBit.interruptEnable) { timer.isHigh = false }
            if !timer.has(TimerBit.level) { status &= ~(1 << UInt64(index)) }
        case Register.timerComparator:
            // A periodic timer takes the value as its period, and as its first match only where software says so before
            // (2.3.9.2.2).
            let sets = !timer.has(TimerBit.periodic) || timer.has(TimerBit.setsValue)
            let value = merge(sets ? timer.comparator : timer.period) & timer.mask
            if timer.has(TimerBit.periodic) { timer.period = value }
            if sets {
                timer.comparator = value
                timer.next = counter(at: now)
            }
            timer.configuration &= ~TimerBit.setsValue
        default: break
        }
        self[index] = timer
    }

    private subscript(index: Int) -> Timer {
        get {
            switch index {
            case 0: timer0
            case 1: timer1
            default: timer2
            }
        }
        set {
            switch index {
            case 0: timer0 = newValue
            case 1: timer1 = newValue
            default: timer2 = newValue
            }
        }
    }
}

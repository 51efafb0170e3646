/// One counter of the 8254: count register, counting element, output latch and control logic (data sheet, figure 5).
///
/// Its fields are right as of CLK pulse `clock`; `advance` moves them on by any number of pulses at once. A count
/// written or a trigger seen at some moment reaches the counting element with the CLK pulse after it, as in the data
/// sheet's timing diagrams: mode 0 raises OUT N + 1 pulses after the write, mode 2 repeats every N.
package struct PITCounter: Codable, Equatable, Sendable {
    package enum Mode: UInt8, Codable {
        case terminalCount, oneShot, rateGenerator, squareWave, softwareStrobe, hardwareStrobe
    }

    /// The RW field of the control word; 0 there is the counter latch command.
    enum Access: UInt8, Codable {
        case low = 1, high, both
    }

    private(set) var mode: Mode
    /// Modes 2 and 3 are selected with bit 3 of the control word as 0 or 1; the status byte tells which.
    private(set) var modeHasHighBit = false
    private(set) var access = Access.both
    private(set) var bcd = false

    private(set) var gate: Bool
    private(set) var out = true
    /// The CLK pulse that all other fields belong to.
    private(set) var clock: UInt64 = 0

    private(set) var countRegister: UInt16
    /// A whole count has been written since the control word.
    private(set) var isWritten = true
    /// The counting element has taken a count since the control word.
    private(set) var isLoaded = true
    /// The next CLK pulse takes the count register into the counting element.
    private(set) var loadsNext = false
    /// Reaching zero will act on OUT (modes 0, 1, 4, 5).
    private(set) var isArmed = false
    /// NULL COUNT of the status byte: what was written last has not reached the counting element.
    private(set) var nullCount = false

    /// The count that is running, 1 to 65,536 (10,000 in BCD).
    private(set) var period: UInt32
    /// CLK pulses until the counting element reaches zero or is reloaded; in mode 3, until OUT toggles.
    private(set) var remaining: UInt32

    /// The first byte of a two-byte count.
    private(set) var firstByte: UInt8?
    private(set) var readsHighByte = false
    private(set) var latchedCount: UInt16?
    private(set) var latchedStatus: UInt8?

    /// A counter with its count loaded and counting from pulse 0, in a mode that repeats.
    package init(mode: Mode, count: UInt16, gate: Bool) {
        self.mode = mode
        self.gate = gate
        countRegister = count
        period = count == 0 ? 0x1_0000 : UInt32(count)
        remaining = mode == .squareWave ? (period + 1) / 2 : period
    }

    // MARK: Programming

    package mutating func writeControl(_ value: UInt8) -> UInt64 {
        guard let newAccess = Access(rawValue: value >> 4 & 0b11) else {
            latchCount()
            return 0
        }
        access = newAccess
        let bits = value >> 1 & 0b111
        mode = Mode(rawValue: bits) ?? (bits & 1 == 0 ? .rateGenerator : .squareWave)
        modeHasHighBit = bits > 5
        bcd = value & 1 != 0
        isWritten = false
        isLoaded = false
        loadsNext = false
        isArmed = false
        nullCount = true
        firstByte = nil
        readsHighByte = false
        latchedCount = nil
        latchedStatus = nil
        return drive(mode != .terminalCount)
    }

    package mutating func write(_ value: UInt8) -> UInt64 {
        switch (access, firstByte) {
        case (.low, _): commit(UInt16(value))
        case (.high, _): commit(UInt16(value) << 8)
        case (.both, nil):
            firstByte = value
            if mode == .terminalCount {
                out = false
                isArmed = false
            }
        case (.both, let low?):
            firstByte = nil
            commit(UInt16(value) << 8 | UInt16(low))
        }
        return 0
    }

    private mutating func commit(_ count: UInt16) {
        countRegister = count
        isWritten = true
        nullCount = true
        switch mode {
        case .terminalCount:
            out = false
            isArmed = false
            loadsNext = true
        case .softwareStrobe: loadsNext = true
        case .rateGenerator, .squareWave: loadsNext = loadsNext || !isLoaded
        case .oneShot, .hardwareStrobe: break
        }
    }

    package mutating func setGate(_ level: Bool) -> UInt64 {
        guard gate != level else { return 0 }
        gate = level
        switch mode {
        case .terminalCount, .softwareStrobe: return 0
        case .oneShot, .hardwareStrobe:
            if level && isWritten { loadsNext = true }
            return 0
        case .rateGenerator, .squareWave:
            if level && isWritten { loadsNext = true }
            return level ? 0 : drive(true)
        }
    }

    // MARK: Reading

    mutating func read() -> UInt8 {
        if let status = latchedStatus {
            latchedStatus = nil
            return status
        }
        let count = latchedCount ?? countingElement
        let high = access == .high || access == .both && readsHighByte
        readsHighByte = access == .both && !readsHighByte
        if !readsHighByte { latchedCount = nil }
        return UInt8(truncatingIfNeeded: high ? count >> 8 : count)
    }

    mutating func latchCount() {
        latchedCount = latchedCount ?? countingElement
    }

    mutating func latchStatus() {
        let modeBits = mode.rawValue | (modeHasHighBit ? 0b100 : 0)
        latchedStatus = latchedStatus ?? (out ? 0x80 : 0) | (nullCount ? 0x40 : 0) | access.rawValue << 4
            | modeBits << 1 | (bcd ? 1 : 0)
    }

    /// What a read of the counter gives. Mode 3 counts down by two, from an even number: an odd count's high half is
    /// one pulse longer, its last pulse at zero.
    private var countingElement: UInt16 {
        var value = remaining
        if mode == .squareWave {
            value = 2 &* (period & 1 != 0 && out ? value &- 1 : value)
        }
        value %= modulus
        guard bcd else { return UInt16(truncatingIfNeeded: value) }
        let digits = value % 10 | (value / 10 % 10) << 4 | (value / 100 % 10) << 8 | (value / 1_000) << 12
        return UInt16(truncatingIfNeeded: digits)
    }

    private var modulus: UInt32 { bcd ? 10_000 : 0x1_0000 }

    /// The count register as a number of pulses; 0 stands for the modulus.
    private var count: UInt32 {
        var value = UInt32(countRegister)
        if bcd {
            value = (value >> 12) &* 1_000 &+ (value >> 8 & 15) &* 100 &+ (value >> 4 & 15) &* 10 &+ (value & 15)
            value %= 10_000
        }
        return value == 0 ? modulus : value
    }

    // MARK: Counting

    /// Moves on to CLK pulse `tick`; returns how often OUT rose. Its cost does not depend on the distance.
    package mutating func advance(to tick: UInt64) -> UInt64 {
        guard tick > clock else { return 0 }
        var pulses = tick &- clock
        var edges: UInt64 = 0
        clock = tick
        if mode == .softwareStrobe || mode == .hardwareStrobe { edges &+= drive(true) }
        if loadsNext {
            edges &+= load()
            pulses &-= 1
        }
        guard pulses > 0, isCounting else { return edges }
        switch mode {
        case .rateGenerator: edges &+= runRate(pulses)
        case .squareWave: edges &+= runSquare(pulses)
        case .terminalCount, .oneShot, .softwareStrobe, .hardwareStrobe: edges &+= runOnce(pulses)
        }
        return edges
    }

    private var isCounting: Bool {
        switch mode {
        case .terminalCount: isLoaded && gate && firstByte == nil
        case .rateGenerator, .squareWave, .softwareStrobe: isLoaded && gate
        case .oneShot, .hardwareStrobe: isLoaded
        }
    }

    private mutating func drive(_ level: Bool) -> UInt64 {
        defer { out = level }
        return level && !out ? 1 : 0
    }

    private mutating func takeCount() {
        period = count
        nullCount = false
    }

    private mutating func load() -> UInt64 {
        loadsNext = false
        isLoaded = true
        takeCount()
        remaining = mode == .squareWave ? half(high: true) : period
        switch mode {
        case .rateGenerator, .squareWave: return drive(true)
        case .oneShot: out = false
        case .terminalCount, .softwareStrobe, .hardwareStrobe: break
        }
        isArmed = true
        return 0
    }

    private mutating func runOnce(_ pulses: UInt64) -> UInt64 {
        let left = UInt64(remaining)
        guard pulses >= left else {
            remaining = UInt32(truncatingIfNeeded: left &- pulses)
            return 0
        }
        remaining = modulus &- UInt32(truncatingIfNeeded: (pulses &- left) % UInt64(modulus))
        guard isArmed else { return 0 }
        isArmed = false
        if mode == .terminalCount || mode == .oneShot { return drive(true) }
        out = pulses > left
        return out ? 1 : 0
    }

    private mutating func runRate(_ pulses: UInt64) -> UInt64 {
        let left = UInt64(remaining)
        guard pulses >= left else {
            remaining = UInt32(truncatingIfNeeded: left &- pulses)
            out = remaining != 1
            return 0
        }
        let rest = pulses &- left
        var edges: UInt64 = period > 1 ? 1 : 0
        takeCount()
        let length = UInt64(period)
        if length > 1 { edges &+= rest / length }
        remaining = period &- UInt32(truncatingIfNeeded: rest % length)
        out = remaining != 1 || period == 1
        return edges
    }

    private mutating func runSquare(_ pulses: UInt64) -> UInt64 {
        let left = UInt64(remaining)
        guard pulses >= left else {
            remaining = UInt32(truncatingIfNeeded: left &- pulses)
            return 0
        }
        takeCount()
        var edges = drive(!out || period == 1)
        var rest = pulses &- left
        let length = UInt64(period)
        if length > 1 { edges &+= rest / length }
        rest %= length
        remaining = half(high: out)
        if rest >= UInt64(remaining) {
            rest &-= UInt64(remaining)
            edges &+= drive(!out || period == 1)
            remaining = half(high: out)
        }
        remaining &-= UInt32(truncatingIfNeeded: rest)
        return edges
    }

    private func half(high: Bool) -> UInt32 { high ? (period &+ 1) / 2 : period / 2 }

    /// CLK pulses after `clock` until OUT rises; nil when it won't by itself.
    package var pulsesToRisingEdge: UInt64? {
        if (mode == .softwareStrobe || mode == .hardwareStrobe) && !out { return 1 }
        if loadsNext {
            var next = self
            if next.advance(to: clock &+ 1) > 0 { return 1 }
            guard !next.loadsNext, let pulses = next.pulsesToRisingEdge else { return nil }
            return pulses &+ 1
        }
        guard isCounting else { return nil }
        let left = UInt64(remaining)
        let next = UInt64(count)
        switch mode {
        case .terminalCount, .oneShot: return isArmed ? left : nil
        case .softwareStrobe, .hardwareStrobe: return isArmed ? left &+ 1 : nil
        case .rateGenerator: return period > 1 ? left : next > 1 ? left &+ next : nil
        case .squareWave: return !out ? left : next > 1 ? left &+ next / 2 : nil
        }
    }
}

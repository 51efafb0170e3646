/// A 16550A serial port: eight registers, as COM1 at ports 0x3f8 to 0x3ff with IRQ 4.
///
/// National Semiconductor PC16550D data sheet, section 8 "Registers". The far end is a null modem cable's: CTS, DSR and
/// DCD asserted, RI not.
///
/// Where a model must choose:
/// - Sending takes no time: a byte written to THR is output at once, and LSR always shows THRE and TEMT, so a guest
///   that polls never waits. Only the THRE *interrupt* comes `transmitInterval` after the write: the interrupt line
///   goes low between two of them, which an edge-triggered interrupt controller needs to see.
/// - Receiving takes no time either; the byte rate matters for the time-out indication alone (4 characters).
/// - Word length, parity and break are kept but not applied to data; no parity, framing or break error ever occurs.
/// - MCR's OUT2 gates the interrupt line as on a PC's board, in loopback too, where a real board would cut it off.
/// - While looped back, the receiver is deaf to the host: `receive` refuses.
public struct UART16550A: BytePortDevice {
    private enum Register {
        static let data: UInt16 = 0
        static let ier: UInt16 = 1
        static let iirFCR: UInt16 = 2
        static let lcr: UInt16 = 3
        static let mcr: UInt16 = 4
        static let lsr: UInt16 = 5
        static let msr: UInt16 = 6
    }

    private enum IER {
        static let receivedData: UInt8 = 0b0001
        static let transmitterEmpty: UInt8 = 0b0010
        static let lineStatus: UInt8 = 0b0100
        static let modemStatus: UInt8 = 0b1000
        static let writable: UInt8 = 0b1111
    }

    private enum IIR {
        static let modemStatus: UInt8 = 0b0000
        static let none: UInt8 = 0b0001
        static let transmitterEmpty: UInt8 = 0b0010
        static let receivedData: UInt8 = 0b0100
        static let lineStatus: UInt8 = 0b0110
        static let characterTimeout: UInt8 = 0b1100
        static let fifosEnabled: UInt8 = 0b1100_0000
    }

    private enum FCR {
        static let enable: UInt8 = 0b0000_0001
        static let clearReceiver: UInt8 = 0b0000_0010
        static let kept: UInt8 = 0b1100_1001
    }

    private enum LCR {
        static let wordLength: UInt8 = 0b0000_0011
        static let stopBits: UInt8 = 0b0000_0100
        static let parity: UInt8 = 0b0000_1000
        static let dlab: UInt8 = 0b1000_0000
    }

    private enum MCR {
        static let dtr: UInt8 = 0b0000_0001
        static let rts: UInt8 = 0b0000_0010
        static let out1: UInt8 = 0b0000_0100
        static let out2: UInt8 = 0b0000_1000
        static let loop: UInt8 = 0b0001_0000
        static let writable: UInt8 = 0b0001_1111
    }

    private enum LSR {
        static let dataReady: UInt8 = 0b0000_0001
        static let overrun: UInt8 = 0b0000_0010
        static let transmitterEmpty: UInt8 = 0b0110_0000
    }

    private enum MSR {
        static let teri: UInt8 = 0b0000_0100
        static let deltas: UInt8 = 0b0000_1111
        static let cts: UInt8 = 0b0001_0000
        static let dsr: UInt8 = 0b0010_0000
        static let ri: UInt8 = 0b0100_0000
        static let dcd: UInt8 = 0b1000_0000
    }

    /// The time from a write to THR to the THRE interrupt. Short, so that output is fast; long enough to be seen.
    public static let transmitInterval = Nanoseconds(1_000)

    /// Receiver FIFO trigger levels by bits 7 and 6 of FCR.
    private static func triggerLevel(_ fcr: UInt8) -> Int {
        switch fcr >> 6 {
        case 0: 1
        case 1: 4
        case 2: 8
        default: 14
        }
    }

    private var ier: UInt8 = 0
    private var fcr: UInt8 = 0
    private var lcr: UInt8 = 0
    private var mcr: UInt8 = 0
    private var msrDeltas: UInt8 = 0
    private var scr: UInt8 = 0
    /// DLM and DLL; 12 is 9,600 baud, what a BIOS sets.
    private var divisor: UInt16 = 12

    private var received = ReceiveFIFO()
    private var overrun = false
    private var timeoutAt: Nanoseconds?
    private var isTimeoutPending = false
    private var transmitterEmptyAt: Nanoseconds?
    private var isTransmitterEmptyPending = false
    private var output: [UInt8] = []

    public init() {}

    // MARK: Host side

    /// Whether `receive` would take a byte.
    public var canReceive: Bool { mcr & MCR.loop == 0 && !isReceiverFull }

    /// Brings a byte in from the line; false when there is no room and the caller must keep it.
    public mutating func receive(_ byte: UInt8, at now: Nanoseconds) -> Bool {
        guard canReceive else { return false }
        advance(to: now)
        return store(byte, at: now)
    }

    public var hasOutput: Bool { !output.isEmpty }

    /// What the guest has sent since the last call.
    public mutating func takeOutput() -> [UInt8] {
        guard !output.isEmpty else { return [] }
        defer { output = [] }
        return output
    }

    /// The level of the interrupt line.
    public var irq: Bool { mcr & MCR.out2 != 0 && interrupt != IIR.none }

    public func nextDeadline(after now: Nanoseconds) -> Nanoseconds? {
        guard mcr & MCR.out2 != 0, !irq else { return nil }
        var deadline: Nanoseconds?
        if ier & IER.transmitterEmpty != 0 { deadline = transmitterEmptyAt }
        if ier & IER.receivedData != 0, let timeoutAt { deadline = min(deadline ?? timeoutAt, timeoutAt) }
        return deadline?.asDeadline(after: now)
    }

    public mutating func advance(to now: Nanoseconds) {
        if let moment = transmitterEmptyAt, now >= moment {
            transmitterEmptyAt = nil
            isTransmitterEmptyPending = true
        }
        if let moment = timeoutAt, now >= moment {
            timeoutAt = nil
            isTimeoutPending = true
        }
    }

    /// What the MR pin does, section 8 table "UART Reset Configuration"; output not taken yet stays.
    public mutating func reset() {
        let sent = output
        self = UART16550A()
        output = sent
    }

    // MARK: Registers

    /// Whether the guest has begun to look at what comes in: it has read the line status or enabled the interrupt.
    /// Before that, setting up the FIFO would drop what was typed early.
    public private(set) var isAttended = false

    public mutating func readByte(_ offset: UInt16, at now: Nanoseconds) -> UInt8 {
        advance(to: now)
        if offset & 7 == Register.lsr { isAttended = true }
        switch offset & 7 {
        case Register.data:
            if lcr & LCR.dlab != 0 { return UInt8(truncatingIfNeeded: divisor) }
            let byte = received.removeFirst() ?? 0
            restartTimeout(at: now)
            return byte
        case Register.ier: return lcr & LCR.dlab != 0 ? UInt8(truncatingIfNeeded: divisor >> 8) : ier
        case Register.iirFCR:
            let id = interrupt
            if id == IIR.transmitterEmpty { isTransmitterEmptyPending = false }
            return id | (isFIFOEnabled ? IIR.fifosEnabled : 0)
        case Register.lcr: return lcr
        case Register.mcr: return mcr
        case Register.lsr:
            defer { overrun = false }
            return LSR.transmitterEmpty | (received.isEmpty ? 0 : LSR.dataReady) | (overrun ? LSR.overrun : 0)
        case Register.msr:
            defer { msrDeltas = 0 }
            return modemLines | msrDeltas
        default: return scr
        }
    }

    public mutating func writeByte(_ offset: UInt16, _ value: UInt8, at now: Nanoseconds) {
        advance(to: now)
        switch offset & 7 {
        case Register.data:
            if lcr & LCR.dlab != 0 {
                divisor = divisor & 0xff00 | UInt16(value)
            } else {
                transmit(value, at: now)
            }
        case Register.ier:
            if lcr & LCR.dlab != 0 {
                divisor = divisor & 0x00ff | UInt16(value) << 8
            } else {
                // THRE is set, so enabling its interrupt raises it (section 8.7); disabling withdraws it.
                if (value ^ ier) & IER.transmitterEmpty != 0 {
                    isTransmitterEmptyPending = value & IER.transmitterEmpty != 0
                    transmitterEmptyAt = nil
                }
                ier = value & IER.writable
                if ier & IER.receivedData != 0 { isAttended = true }
            }
        case Register.iirFCR: writeFCR(value)
        case Register.lcr: lcr = value
        case Register.mcr: writeMCR(value)
        case Register.lsr, Register.msr: break
        default: scr = value
        }
    }

    private mutating func transmit(_ byte: UInt8, at now: Nanoseconds) {
        isTransmitterEmptyPending = false
        transmitterEmptyAt = now + Self.transmitInterval
        if mcr & MCR.loop == 0 {
            output.append(byte)
        } else {
            _ = store(byte, at: now)
        }
    }

    private mutating func writeFCR(_ value: UInt8) {
        let isEnabled = value & FCR.enable != 0
        if isEnabled != isFIFOEnabled || isEnabled && value & FCR.clearReceiver != 0 {
            received.removeAll()
            timeoutAt = nil
            isTimeoutPending = false
        }
        fcr = isEnabled ? value & FCR.kept : 0
    }

    private mutating func writeMCR(_ value: UInt8) {
        let old = modemLines
        mcr = value & MCR.writable
        let new = modemLines
        // TERI is set by the end of a ring only, the other deltas by any change.
        let ringBegan = new & ~old & MSR.ri != 0
        msrDeltas |= (old ^ new) >> 4 & (ringBegan ? MSR.deltas & ~MSR.teri : MSR.deltas)
    }

    // MARK: Receiver

    private var isFIFOEnabled: Bool { fcr & FCR.enable != 0 }

    private var isReceiverFull: Bool { isFIFOEnabled ? received.isFull : !received.isEmpty }

    /// Puts a byte into the receiver. A full FIFO keeps what it has; without FIFOs the new byte replaces the old one.
    private mutating func store(_ byte: UInt8, at now: Nanoseconds) -> Bool {
        if isReceiverFull {
            overrun = true
            if !isFIFOEnabled {
                received.removeAll()
                _ = received.append(byte)
            }
            return false
        }
        let isStored = received.append(byte)
        restartTimeout(at: now)
        return isStored
    }

    private mutating func restartTimeout(at now: Nanoseconds) {
        isTimeoutPending = false
        timeoutAt = isFIFOEnabled && !received.isEmpty ? now + Self.timeout(divisor: divisor, lcr: lcr) : nil
    }

    /// Four character times, section 8.5 "FIFO Interrupt Mode Operation". A divisor of 0 counts as 1.
    private static func timeout(divisor: UInt16, lcr: UInt8) -> Nanoseconds {
        let extra: UInt64 = (lcr & LCR.stopBits != 0 ? 1 : 0) + (lcr & LCR.parity != 0 ? 1 : 0)
        let bits = 7 + UInt64(lcr & LCR.wordLength) + extra
        return Nanoseconds(4 * bits * UInt64(max(divisor, 1)) * 1_000_000_000 / 115_200)
    }

    // MARK: Interrupts and modem lines

    /// The pending interrupt of the highest priority as IIR shows it, table III.
    private var interrupt: UInt8 {
        if ier & IER.lineStatus != 0, overrun { return IIR.lineStatus }
        if ier & IER.receivedData != 0 {
            let trigger = isFIFOEnabled ? Self.triggerLevel(fcr) : 1
            if received.count >= trigger { return IIR.receivedData }
            if isTimeoutPending { return IIR.characterTimeout }
        }
        if ier & IER.transmitterEmpty != 0, isTransmitterEmptyPending { return IIR.transmitterEmpty }
        if ier & IER.modemStatus != 0, msrDeltas != 0 { return IIR.modemStatus }
        return IIR.none
    }

    /// The upper half of MSR.
    private var modemLines: UInt8 {
        guard mcr & MCR.loop != 0 else { return MSR.cts | MSR.dsr | MSR.dcd }
        return (mcr & MCR.rts != 0 ? MSR.cts : 0) | (mcr & MCR.dtr != 0 ? MSR.dsr : 0)
            | (mcr & MCR.out1 != 0 ? MSR.ri : 0) | (mcr & MCR.out2 != 0 ? MSR.dcd : 0)
    }
}

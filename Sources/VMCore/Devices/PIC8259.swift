/// One 8259A programmable interrupt controller, in 8086 mode.
///
/// Intel 8259A data sheet (231468). As in a PC chip set, ELCR chooses edge or level for each input and ICW1.LTIM is
/// ignored; so are ICW3 (the wiring is fixed), buffered mode and the 8080 mode. An edge request is withdrawn if its
/// input falls before the acknowledgement, as the data sheet says.
public struct PIC8259: Codable, Equatable, Sendable {
    enum ICW1 {
        static let isICW1: UInt8 = 0b0001_0000
        static let isSingle: UInt8 = 0b0000_0010
        static let needsICW4: UInt8 = 0b0000_0001
    }

    enum ICW4 {
        static let specialFullyNested: UInt8 = 0b0001_0000
        static let automaticEOI: UInt8 = 0b0000_0010
    }

    enum OCW2 {
        static let levelMask: UInt8 = 0b0000_0111
    }

    enum OCW3 {
        static let isOCW3: UInt8 = 0b0000_1000
        static let enableSpecialMask: UInt8 = 0b0100_0000
        static let specialMask: UInt8 = 0b0010_0000
        static let poll: UInt8 = 0b0000_0100
        static let readRegister: UInt8 = 0b0000_0010
        static let readInService: UInt8 = 0b0000_0001
    }

    /// What the next write to the odd port means.
    enum Expected: String, Codable, Sendable {
        case mask, icw2, icw3, icw4
    }

    static let pollInterrupt: UInt8 = 0x80
    /// The input that stands for a request that has gone away.
    static let spuriousInput: UInt8 = 7
    static let cascadeInput: UInt8 = 2

    /// One bit an input that is high.
    var lines: UInt8 = 0
    /// One bit an edge-triggered input that has risen since its last acknowledgement and has not fallen.
    var edges: UInt8 = 0
    /// ELCR: one bit a level-triggered input.
    var levelTriggered: UInt8 = 0
    /// The in-service register.
    public internal(set) var inService: UInt8 = 0
    /// The interrupt-mask register. All masked until a guest sets it up; the data sheet says nothing of power-up.
    public internal(set) var mask: UInt8 = 0xff
    /// ICW2: bits 7:3 of the vectors.
    var vectorBase: UInt8 = 0
    /// The input of lowest priority.
    var lowestPriority: UInt8 = 7

    var expected = Expected.mask
    var isSingle = false
    var needsICW4 = false
    var isSpecialFullyNested = false
    var isAutomaticEOI = false
    var rotatesOnAutomaticEOI = false
    var isSpecialMask = false
    var readsInService = false
    var isPolled = false

    public init() {}

    /// The interrupt-request register.
    public var requests: UInt8 { (edges & ~levelTriggered) | (lines & levelTriggered) }

    /// The input that INT stands for now, nil while INT is low.
    ///
    /// An input is served if nothing of its own or a higher priority is in service. In special mask mode, masked levels
    /// in service don't count; in special fully nested mode, the slave's own level does not block the slave.
    public var servedInput: UInt8? {
        let candidates = requests & ~mask
        guard candidates != 0 else { return nil }
        let priority = highestPriority(of: candidates)
        let input = self.input(ofPriority: priority)
        let blocking = isSpecialMask ? inService & ~mask : inService
        guard blocking != 0 else { return input }
        let served = highestPriority(of: blocking)
        if priority < served { return input }
        return isSpecialFullyNested && priority == served && input == Self.cascadeInput ? input : nil
    }

    /// The INT output.
    public var output: Bool { servedInput != nil }

    public mutating func setInput(_ input: UInt8, level: Bool) {
        let bit: UInt8 = 1 &<< (input & 7)
        if level {
            if lines & bit == 0 { edges |= bit }
            lines |= bit
        } else {
            lines &= ~bit
            edges &= ~bit
        }
    }

    public mutating func setLevelTriggered(_ inputs: UInt8) {
        levelTriggered = inputs
        edges &= ~inputs
    }

    /// The INTA sequence: puts the served input into service and returns it; input 7, not in service, if none is left.
    public mutating func acknowledge() -> UInt8 {
        guard let input = servedInput else { return Self.spuriousInput }
        let bit: UInt8 = 1 &<< input
        edges &= ~bit
        if isAutomaticEOI {
            if rotatesOnAutomaticEOI { lowestPriority = input }
        } else {
            inService |= bit
        }
        return input
    }

    /// The vector of an input.
    public func vector(of input: UInt8) -> UInt8 { vectorBase & 0xf8 | input & 7 }

    // MARK: Registers

    public mutating func read(isOddPort: Bool) -> UInt8 {
        if isPolled {
            isPolled = false
            guard output else { return 0 }
            return Self.pollInterrupt | acknowledge()
        }
        if isOddPort { return mask }
        return readsInService ? inService : requests
    }

    public mutating func write(_ value: UInt8, isOddPort: Bool) {
        if isOddPort {
            writeOddPort(value)
        } else if value & ICW1.isICW1 != 0 {
            initialise(value)
        } else if value & OCW3.isOCW3 != 0 {
            writeOCW3(value)
        } else {
            writeOCW2(value)
        }
    }

    /// ICW1 (data sheet, "Initialization Command Words"). A line that is high must fall and rise again to count.
    private mutating func initialise(_ value: UInt8) {
        edges = 0
        inService = 0
        mask = 0
        lowestPriority = 7
        isSpecialMask = false
        isSpecialFullyNested = false
        isAutomaticEOI = false
        rotatesOnAutomaticEOI = false
        readsInService = false
        isPolled = false
        isSingle = value & ICW1.isSingle != 0
        needsICW4 = value & ICW1.needsICW4 != 0
        expected = .icw2
    }

    private mutating func writeOddPort(_ value: UInt8) {
        switch expected {
        case .mask: mask = value
        case .icw2:
            vectorBase = value & 0xf8
            expected = !isSingle ? .icw3 : needsICW4 ? .icw4 : .mask
        case .icw3: expected = needsICW4 ? .icw4 : .mask
        case .icw4:
            isSpecialFullyNested = value & ICW4.specialFullyNested != 0
            isAutomaticEOI = value & ICW4.automaticEOI != 0
            expected = .mask
        }
    }

    /// OCW2: bits 7:5 are rotate, specific and EOI.
    private mutating func writeOCW2(_ value: UInt8) {
        let level = value & OCW2.levelMask
        switch value >> 5 {
        case 0b000: rotatesOnAutomaticEOI = false
        case 0b001: endHighest(rotating: false)
        case 0b011: inService &= ~(1 &<< level)
        case 0b100: rotatesOnAutomaticEOI = true
        case 0b101: endHighest(rotating: true)
        case 0b110: lowestPriority = level
        case 0b111:
            inService &= ~(1 &<< level)
            lowestPriority = level
        default: break
        }
    }

    /// A non-specific EOI. In special mask mode it does not end masked levels.
    private mutating func endHighest(rotating: Bool) {
        let candidates = isSpecialMask ? inService & ~mask : inService
        guard candidates != 0 else { return }
        let input = self.input(ofPriority: highestPriority(of: candidates))
        inService &= ~(1 &<< input)
        if rotating { lowestPriority = input }
    }

    private mutating func writeOCW3(_ value: UInt8) {
        if value & OCW3.enableSpecialMask != 0 { isSpecialMask = value & OCW3.specialMask != 0 }
        if value & OCW3.poll != 0 {
            isPolled = true
        } else if value & OCW3.readRegister != 0 {
            readsInService = value & OCW3.readInService != 0
        }
    }

    // MARK: Priorities

    /// The highest priority (0 is the highest) among a non-empty set of inputs.
    private func highestPriority(of inputs: UInt8) -> UInt8 {
        let first = (lowestPriority &+ 1) & 7
        let rotated = inputs &>> first | inputs &<< (8 &- first)
        return UInt8(truncatingIfNeeded: rotated.trailingZeroBitCount) & 7
    }

    private func input(ofPriority priority: UInt8) -> UInt8 { (lowestPriority &+ 1 &+ priority) & 7 }
}

/// The two 8259As of a PC, the slave's INT on the master's input 2, with the edge/level control registers.
///
/// Offsets are port numbers: the first port is 0. Wider accesses are split into bytes, as the ISA bus does; a port that
/// is none of the pair's reads 0xff. ELCR: Intel 82371AB (PIIX4) data sheet, 4.2.4.
public struct PIC8259Pair: PortDevice {
    enum Port {
        static let masterCommand: UInt16 = 0x20
        static let masterData: UInt16 = 0x21
        static let slaveCommand: UInt16 = 0xa0
        static let slaveData: UInt16 = 0xa1
        static let masterELCR: UInt16 = 0x4d0
        static let slaveELCR: UInt16 = 0x4d1
    }

    /// IRQ 0 (timer), 1 (keyboard) and 2 (cascade) are always edge-triggered.
    static let masterELCRWritable: UInt8 = 0b1111_1000
    /// IRQ 8 (clock) and 13 (coprocessor) are always edge-triggered.
    static let slaveELCRWritable: UInt8 = 0b1101_1110

    public internal(set) var master = PIC8259()
    public package(set) var slave = PIC8259()

    public init() {}

    /// The INTR output.
    @inline(__always) public var output: Bool { master.output }

    /// Sets IRQ 0 to 15. IRQ 2 is the cascade and belongs to the pair.
    public mutating func setLine(_ irq: Int, level: Bool) {
        guard (0..<16).contains(irq), irq != Int(PIC8259.cascadeInput) else { return }
        let input = UInt8(truncatingIfNeeded: irq) & 7
        if irq < 8 {
            master.setInput(input, level: level)
        } else {
            slave.setInput(input, level: level)
            cascade()
        }
    }

    /// The processor's INTA sequence; returns the vector, that of IRQ 7 or 15 where the request has gone away.
    public mutating func acknowledge() -> UInt8 {
        let input = master.acknowledge()
        guard input == PIC8259.cascadeInput else { return master.vector(of: input) }
        let slaveInput = slave.acknowledge()
        dropCascade()
        return slave.vector(of: slaveInput)
    }

    /// Whether a port belongs to the pair.
    public static func owns(port: UInt16) -> Bool {
        switch port {
        case Port.masterCommand, Port.masterData, Port.slaveCommand, Port.slaveData, Port.masterELCR, Port.slaveELCR:
            true
        default: false
        }
    }

    public mutating func read(offset: UInt16, size: Int, at now: Nanoseconds) -> UInt32 {
        var value: UInt32 = 0
        for byte in 0..<UInt16(truncatingIfNeeded: max(0, min(size, 4))) {
            value |= UInt32(readByte(offset &+ byte)) &<< UInt32(byte &* 8)
        }
        return value
    }

    public mutating func write(offset: UInt16, size: Int, value: UInt32, at now: Nanoseconds) {
        for byte in 0..<UInt16(truncatingIfNeeded: max(0, min(size, 4))) {
            writeByte(offset &+ byte, UInt8(truncatingIfNeeded: value &>> UInt32(byte &* 8)))
        }
    }

    private mutating func readByte(_ port: UInt16) -> UInt8 {
        switch port {
        case Port.masterCommand, Port.masterData: return master.read(isOddPort: port & 1 != 0)
        case Port.slaveCommand, Port.slaveData:
            let acknowledges = slave.isPolled && slave.output
            defer { if acknowledges { dropCascade() } }
            return slave.read(isOddPort: port & 1 != 0)
        case Port.masterELCR: return master.levelTriggered
        case Port.slaveELCR: return slave.levelTriggered
        default: return 0xff
        }
    }

    private mutating func writeByte(_ port: UInt16, _ value: UInt8) {
        switch port {
        case Port.masterCommand, Port.masterData: master.write(value, isOddPort: port & 1 != 0)
        case Port.slaveCommand where value & PIC8259.ICW1.isICW1 != 0:
            slave.write(value, isOddPort: false)
            dropCascade()
        case Port.slaveCommand, Port.slaveData:
            slave.write(value, isOddPort: port & 1 != 0)
            cascade()
        case Port.masterELCR: master.setLevelTriggered(value & Self.masterELCRWritable)
        case Port.slaveELCR:
            slave.setLevelTriggered(value & Self.slaveELCRWritable)
            cascade()
        default: break
        }
    }

    private mutating func cascade() {
        master.setInput(PIC8259.cascadeInput, level: slave.output)
    }

    /// INT falls at an acknowledgement and rises again if more is waiting, so that the master sees an edge.
    private mutating func dropCascade() {
        master.setInput(PIC8259.cascadeInput, level: false)
        cascade()
    }
}

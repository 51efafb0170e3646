import VMCore

/// Where things lie in the guest that executes system instructions, physical and linear alike.
enum SystemLayout {
    static let tables: UInt64 = 0x1000  // of long mode: one page a level
    /// From here to `end` lies what instructions change; it is made anew before each case and compared after it.
    static let start: UInt64 = 0x10000
    static let idt: UInt64 = 0x10000
    static let gdt: UInt64 = 0x11000
    static let ldt: UInt64 = 0x12000
    static let tss: UInt64 = 0x13000  // with a bitmap that allows all ports
    static let otherTSS: UInt64 = 0x16000
    static let stubs: UInt64 = 0x18000  // 16 bytes a vector
    static let data: UInt64 = 0x1A000  // before a page that isn't mapped
    static let readOnly: UInt64 = 0x1C000
    static let stack: UInt64 = 0x1D800  // in the middle of a page
    static let innerStack: UInt64 = 0x1F000  // grows down
    static let end: UInt64 = 0x1F000
    static let code: UInt64 = 0x20000
    /// Where far transfers lead, at any even offset: user mode may execute it.
    static let target: UInt64 = 0x21000
    static let lowTarget: UInt64 = 0x8000  // for offsets of 16 bits

    /// OUT 0xf4, AL: the end of a case, wherever it gets to.
    static let report: [UInt8] = [0xE6, 0xF4]
    static let port: UInt64 = 0xF4
    static let gdtLimit = UInt16(8 * descriptors.count - 1)

    // Selectors of the segments that a case begins with.
    static let code64: UInt16 = 0x08, data64: UInt16 = 0x10, task: UInt16 = 0x18, userCode: UInt16 = 0x28
    static let userData: UInt16 = 0x30, userCode32: UInt16 = 0x38, code32: UInt16 = 0x40, localTable: UInt16 = 0x98

    private static func system(_ type: UInt64, _ base: UInt64, limit: UInt64, high: UInt64 = 0) -> [UInt64] {
        [limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | type << 40 | (base >> 24 & 0xFF) << 56, high]
    }

    private static func gate(_ type: UInt64, _ selector: UInt16, _ offset: UInt64) -> [UInt64] {
        [offset & 0xFFFF | UInt64(selector) << 16 | type << 40 | (offset >> 16 & 0xFFFF) << 48, offset >> 32]
    }

    /// One of each kind that the checks tell apart.
    static let descriptors: [UInt64] = [
        0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF,  // null, 64-bit code, data
    ] + system(0x8B, tss, limit: 0x2067) + [
        0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_9B00_0000_FFFF,
        0x00CF_1300_0000_FFFF,  // 48: data, not present
        0x00CF_9100_0000_FFFF,  // 50: read-only
        0x004F_9700_0000_0FFF,  // 58: expand-down
        0x00CF_9900_0000_FFFF,  // 60: code that can't be read
        0x00AF_9F00_0000_FFFF,  // 68: conforming code
        0x00AF_FF00_0000_FFFF,  // 70: conforming code of DPL 3
        0x00AF_1B00_0000_FFFF,  // 78: code, not present
        0x0040_9201_A000_0FFF,  // 80: data at 0x1A000, not accessed yet
        0x00CF_F200_0000_FFFF,  // 88: data of DPL 3, not accessed yet
        0x00CF_D300_0000_FFFF,  // 90: data of DPL 2
    ] + system(0x82, ldt, limit: 0x1F) + system(0x02, ldt, limit: 0x1F)  // 98: LDT; A8: not present
        + system(0x89, otherTSS, limit: 0x67) + system(0x09, otherTSS, limit: 0x67)  // B8: TSS; C8: not present
        + gate(0x8C, code64, target) + gate(0x0C, code64, target)  // D8: call gate; E8: not present
        + system(0x89, 0, limit: 0x67, high: 0x1_0000)  // F8: TSS with a base that isn't canonical
        + [0x00EF_9B00_0000_FFFF]  // 108: code with L and D
        + system(0x82, ldt, limit: 0x1F, high: 0x1F00 << 32)  // 110: LDT with a type in its upper half
        + [0x00AF_9A00_0000_FFFF, 0x0000_9B00_0000_FFFF]  // 120: code, not accessed yet; 128: 16-bit code
        + system(0x8B, otherTSS, limit: 0x87)  // 130: busy TSS
        + gate(0x8C, 0, target) + gate(0xEC, userCode, target)  // 140, 150: call gates to null and to DPL 3
        + system(0x83, otherTSS, limit: 0x2B) + system(0x86, 0, limit: 0)  // 160: busy 16-bit TSS; 170: interrupt gate
        + [0x00CF_BB00_0000_FFFF]  // 180: code of DPL 1

    static let localDescriptors: [UInt64] = [
        0x00CF_9200_0000_FFFF, 0x00AF_9B00_0000_FFFF, 0x00CF_1300_0000_FFFF, 0x00CF_F300_0000_FFFF,
    ]

    static func bytes(_ values: [UInt64]) -> [UInt8] {
        values.flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
    }

    /// Memory from `start` to `end` before a case.
    static let image: [UInt8] = {
        var image = [UInt8](repeating: 0, count: Int(end - start))
        func put(_ bytes: [UInt8], at address: UInt64) {
            image.replaceSubrange(Int(address - start)..<(Int(address - start) + bytes.count), with: bytes)
        }
        let stub = { (vector: UInt64) in stubs + 16 * vector }
        // All gates but those of 0x40 to 0x43 are the kernel's alone.
        put(bytes((0..<256 as Range<UInt64>).flatMap { vector -> [UInt64] in
            switch vector {
            case 0x40: gate(0xEE, code64, stub(vector))
            case 0x41: gate(0x0E, code64, stub(vector))
            case 0x42: gate(0x8E, 0, stub(vector))
            case 0x43: gate(0x8F, code64, stub(vector))
            default: gate(0x8E, code64, stub(vector))
            }
        }), at: idt)
        put(bytes(descriptors), at: gdt)
        put(bytes(localDescriptors), at: ldt)
        put(bytes([innerStack, innerStack - 0x200, innerStack - 0x400]), at: tss + 4)
        put([104, 0], at: tss + 102)
        // The first instruction is no exit: a soft engine that stands in for KVM stops behind it.
        for vector in 0..<256 as Range<UInt64> { put([0x90] + report, at: stub(vector)) }
        return image
    }()
}

/// One case: code and the state and memory before it.
struct SystemCase: CustomStringConvertible {
    /// The instruction.
    var name: String
    var mode: SystemMachine.Mode
    var code: [UInt8] = []
    var state: CPUState
    var memory: [(address: UInt64, bytes: [UInt8])] = []
    var number = 0

    var description: String {
        let code = code.map { hex($0) }.joined(separator: " ")
        return "\(mode.rawValue) case \(number), \(name): \(code)"
    }
}

/// What came of a case in one engine.
struct SystemOutcome {
    enum Ending: Equatable {
        case report
        case shutdown
        /// Neither KVM nor the soft engine in its place could go on, or something else of the kind.
        case failure(String)
    }
    var ending: Ending
    /// The exits before the end: MSRs that are the monitor's, answered by a fault but for the timestamp.
    var exits: [String] = []
    var state = CPUState()
    var memory: [UInt8] = []
    /// KVM didn't know the instruction, and the soft engine stood in for it.
    var isAssisted = false

    /// Where the case got to: a vector's handler, or code.
    var vector: Int? {
        let stubs = SystemLayout.stubs..<(SystemLayout.stubs + 4096)
        return stubs.contains(state.general.rip) ? Int(state.general.rip - stubs.lowerBound) / 16 : nil
    }
}

/// The guest that executes system instructions, in one engine.
final class SystemMachine {
    enum Mode: String, CaseIterable {
        case long64 = "64-bit"
        case compatibility32 = "32-bit compatibility"
    }

    let engine: any Engine

    static func memory() throws -> GuestMemory { try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20)) }

    init(_ engine: any Engine) {
        self.engine = engine
        let tables = SystemLayout.tables
        for level in 0..<3 as Range<UInt64> {
            write(SystemLayout.bytes([tables + 0x1000 * (level + 1) | 0x67]), at: tables + 0x1000 * level)
        }
        // Accessed and dirty from the beginning, so that no engine has to set them.
        let pages = (0..<512 as Range<UInt64>).map { number -> UInt64 in
            let address = number << 12
            switch address {
            case SystemLayout.data + 0x1000: return 0
            case SystemLayout.readOnly: return address | 0x65
            case SystemLayout.target, SystemLayout.lowTarget: return address | 0x67
            default: return address | 0x63
            }
        }
        write(SystemLayout.bytes(pages), at: tables + 0x3000)
        let reports = [[UInt8]](repeating: SystemLayout.report, count: 1024).flatMap { $0 }
        write(reports, at: SystemLayout.target)
        write(reports, at: SystemLayout.lowTarget)
    }

    private func write(_ bytes: [UInt8], at address: UInt64) { precondition(engine.memory.write(bytes, at: .init(address))) }

    static func state(_ mode: Mode) -> CPUState {
        var state = CPUState.reset()
        let data = SegmentRegister(selector: SystemLayout.data64, limit: .max, attributes: 0xC93)
        (state.ss, state.ds, state.es, state.fs, state.gs) = (data, data, data, data, data)
        state.cs = SegmentRegister(selector: mode == .long64 ? SystemLayout.code64 : SystemLayout.code32, limit: .max,
                                   attributes: mode == .long64 ? 0xA9B : 0xC9B)
        state.ldtr = SegmentRegister(selector: SystemLayout.localTable, base: SystemLayout.ldt, limit: 0x1F, attributes: 0x82)
        state.gdtr = DescriptorTable(base: SystemLayout.gdt, limit: SystemLayout.gdtLimit)
        state.tr = SegmentRegister(selector: SystemLayout.task, base: SystemLayout.tss, limit: 0x2067, attributes: 0x8B)
        state.idtr = DescriptorTable(base: SystemLayout.idt, limit: 4095)
        state.control.cr0 = 0x8001_0033
        state.control.cr3 = SystemLayout.tables
        state.control.cr4 = 0x620
        state.control.efer = 0xD01
        state.general.rip = SystemLayout.code
        state.general.rsp = SystemLayout.stack
        return state
    }

    /// Runs a case to its end.
    func run(_ one: SystemCase, within limit: Nanoseconds = .seconds(2)) throws -> SystemOutcome {
        let layout = SystemLayout.self
        write(layout.image, at: layout.start)
        write(one.code + layout.report, at: layout.code)
        for (address, bytes) in one.memory { write(bytes, at: address) }
        let kvm = engine as? KVMEngine
        let before = kvm?.assistedInstructions
        var outcome = SystemOutcome(ending: .failure("it didn't end in time"))
        try engine.setState(one.state)
        let end = hostTime() + limit
        engine.armKick(at: end)
        do throws(HostError) {
            loop: while hostTime() < end {
                guard case .exit(var exit) = try engine.enter(until: .none) else { continue }
                let isReport = exit.identity == EventIdentity(kind: .portWrite, size: 1, address: layout.port)
                switch exit.identity.kind {
                case _ where isReport: outcome.ending = .report
                case .shutdown: outcome.ending = .shutdown
                default:
                    let isRead = exit.identity.kind == .msrRead || exit.identity.kind == .timestamp
                    outcome.exits.append("\(exit.identity)" + (isRead ? "" : " = \(hex(exit.value))"))
                    if exit.identity.kind != .timestamp { exit.identity.flags |= EventIdentity.faulted }
                    exit.value = 0x1234_5678_9ABC
                }
                try engine.answer(exit)
                if outcome.ending == .shutdown { break loop }
                if isReport {
                    _ = try engine.settle()
                    break loop
                }
            }
            outcome.state = try engine.state()
        } catch {
            outcome.ending = .failure("\(error)")
        }
        outcome.isAssisted = kvm?.assistedInstructions != before
        outcome.memory = engine.memory.read(.init(layout.start), count: Int(layout.end - layout.start)) ?? []
        return outcome
    }
}

import VMCore

/// Registers as a person reads them.
enum RegisterText {
    typealias Bit = (name: String, bit: UInt64)

    // Source: Intel SDM Vol. 3A, 2.5 (control registers), 2.2.1 (EFER), 18.2 (debug registers).
    static let cr0: [Bit] = [
        ("PG", 31), ("CD", 30), ("NW", 29), ("AM", 18), ("WP", 16), ("NE", 5), ("ET", 4), ("TS", 3), ("EM", 2),
        ("MP", 1),
        ("PE", 0),
    ]
    static let cr4: [Bit] = [
        ("PKS", 24), ("CET", 23), ("PKE", 22), ("SMAP", 21), ("SMEP", 20), ("OSXSAVE", 18), ("PCIDE", 17),
        ("FSGSBASE", 16),
        ("SMXE", 14), ("VMXE", 13), ("LA57", 12), ("UMIP", 11), ("OSXMMEXCPT", 10), ("OSFXSR", 9), ("PCE", 8),
        ("PGE", 7),
        ("MCE", 6), ("PAE", 5), ("PSE", 4), ("DE", 3), ("TSD", 2), ("PVI", 1), ("VME", 0),
    ]
    static let efer: [Bit] = [("FFXSR", 14), ("SVME", 12), ("NXE", 11), ("LMA", 10), ("LME", 8), ("SCE", 0)]
    static let xcr0: [Bit] = [("AVX", 2), ("SSE", 1), ("x87", 0)]
    static let dr6: [Bit] = [("BT", 15), ("BS", 14), ("BD", 13), ("B3", 3), ("B2", 2), ("B1", 1), ("B0", 0)]

    static func bits(_ value: UInt64, _ names: [Bit]) -> String {
        names.filter { value >> $0.bit & 1 == 1 }.map(\.name).joined(separator: " ")
    }

    static func flags(_ rflags: UInt64) -> String {
        let set = bits(rflags, Vocabulary.flags.reversed().map { ($0.name.uppercased(), $0.bit) })
        let level = rflags >> 12 & 3
        return level == 0 ? set : (set.isEmpty ? "" : set + " ") + "IOPL=\(level)"
    }

    /// What a segment is, from its descriptor. Source: Intel SDM Vol. 3A, 3.4.5 and table 3-2.
    static func segment(_ segment: SegmentRegister) -> String {
        let bits = segment.attributes
        if bits & SegmentRegister.unusable != 0 { return "unusable" }
        if bits >> 7 & 1 == 0 { return "not present" }
        let level = "DPL \(segment.dpl)"
        guard bits >> 4 & 1 == 1 else {
            return switch bits & 15 {
            case 2: "LDT"
            case 3: "16-bit TSS, busy"
            case 11: "TSS, busy"
            default: "system, type \(bits & 15), \(level)"
            }
        }
        let access = bits & 1 == 0 ? ", not accessed" : ""
        if bits >> 3 & 1 == 1 {
            let width = bits >> 9 & 1 == 1 ? "64" : bits >> 10 & 1 == 1 ? "32" : "16"
            return
                "\(width)-bit code" + (bits >> 1 & 1 == 1 ? "" : ", execute-only")
                + (bits >> 2 & 1 == 1 ? ", conforming" : "") + ", "
                + level + access
        }
        return
            "data" + (bits >> 1 & 1 == 1 ? "" : ", read-only") + (bits >> 2 & 1 == 1 ? ", expand-down" : "")
            + ", \(level)\(access)"
    }

    /// The processor's mode and privilege level.
    static func mode(_ core: CoreRegisters) -> String {
        let control = core.control
        let (protected, paging) = (control.cr0 & 1 == 1, control.cr0 >> 31 & 1 == 1)
        guard protected else { return "real mode" }
        let mode =
            if core.general.rflags >> 17 & 1 == 1 { "virtual-8086 mode" } else if control.efer >> 10 & 1 == 0 {
                "\(core.cs.attributes >> 10 & 1 == 1 ? 32 : 16)-bit protected mode"
            } else { core.cs.attributes >> 9 & 1 == 1 ? "64-bit mode" : "compatibility mode" }
        let tables =
            control.efer >> 10 & 1 == 1 ? "4-level paging" : control.cr4 >> 5 & 1 == 1 ? "PAE paging" : "32-bit paging"
        return "CPL \(core.cpl), \(mode), \(paging ? tables : "no paging")"
    }

    static func hex(_ value: UInt64, digits: Int) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    static func bytes(_ bytes: some Sequence<UInt8>) -> String { bytes.map { hex(UInt64($0), digits: 2) }.joined() }

    /// Exceptions, interrupts and their blocking; empty where there is none.
    static func events(_ events: EventState) -> [String] {
        var list: [String] = []
        if events.exceptionInjected || events.exceptionPending {
            list.append(
                "exception \(events.exceptionVector) \(events.exceptionInjected ? "being delivered" : "pending")")
        }
        if events.interruptInjected {
            list.append("interrupt 0x\(hex(UInt64(events.interruptVector), digits: 2)) being delivered")
        }
        if events.interruptShadow & 1 != 0 { list.append("MOV SS holds interrupts off") }
        if events.interruptShadow & 2 != 0 { list.append("STI holds interrupts off") }
        if events.nmiInjected { list.append("NMI being delivered") }
        if events.nmiPending != 0 { list.append("NMI pending") }
        if events.nmiMasked { list.append("NMIs blocked") }
        if events.tripleFaultPending { list.append("triple fault pending") }
        if events.halted { list.append("halted") }
        return list
    }
}

/// A register's name, its value in hexadecimal, and what the value means where that isn't obvious.
struct RegisterField: Equatable, Sendable {
    var name: String
    var value: String
    var meaning: String

    init(_ name: String, _ value: UInt64, digits: Int = 16, _ meaning: String = "") {
        self.init(name, text: "0x" + RegisterText.hex(value, digits: digits), meaning)
    }

    init(_ name: String, text: String, _ meaning: String = "") {
        self.name = name
        value = text
        self.meaning = meaning
    }
}

extension CPUState {
    /// Every register, in a fixed order.
    func fields(_ symbols: SymbolTable) -> [RegisterField] {
        var list = Vocabulary.general.map { name, path in
            let value = core.general[keyPath: path]
            return RegisterField(name, value, symbols.name(of: value) ?? "")
        }
        list.append(RegisterField("rip", core.general.rip, symbols.name(of: core.linearRIP) ?? ""))
        list.append(RegisterField("rflags", core.general.rflags, digits: 8, RegisterText.flags(core.general.rflags)))
        for (name, path) in Vocabulary.segments {
            let segment = core[keyPath: path]
            list.append(RegisterField(name, UInt64(segment.selector), digits: 4, RegisterText.segment(segment)))
            list.append(RegisterField(name + ".base", segment.base))
            list.append(RegisterField(name + ".limit", UInt64(segment.limit), digits: 8))
            list.append(RegisterField(name + ".attributes", UInt64(segment.attributes), digits: 4))
        }
        for (name, table) in [("gdtr", core.gdtr), ("idtr", core.idtr)] {
            list.append(RegisterField(name + ".base", table.base))
            list.append(RegisterField(name + ".limit", UInt64(table.limit), digits: 4))
        }
        let control = core.control
        list += [
            RegisterField("cr0", control.cr0, digits: 8, RegisterText.bits(control.cr0, RegisterText.cr0)),
            RegisterField("cr2", control.cr2), RegisterField("cr3", control.cr3),
            RegisterField("cr4", control.cr4, digits: 8, RegisterText.bits(control.cr4, RegisterText.cr4)),
            RegisterField("cr8", control.cr8, digits: 1),
            RegisterField("efer", control.efer, digits: 4, RegisterText.bits(control.efer, RegisterText.efer)),
            RegisterField("xcr0", control.xcr0, digits: 1, RegisterText.bits(control.xcr0, RegisterText.xcr0)),
        ]
        list += (0..<4).map { RegisterField("dr\($0)", debug.address[$0]) }
        list.append(RegisterField("dr6", debug.dr6, digits: 8, RegisterText.bits(debug.dr6, RegisterText.dr6)))
        list.append(RegisterField("dr7", debug.dr7, digits: 8))
        list += zip(Vocabulary.msrNames, msrs).map { RegisterField($0, $1) }
        return list + floatingPointFields + eventFields + (timestampCounter.map { [RegisterField("tsc", $0)] } ?? [])
    }

    private var floatingPointFields: [RegisterField] {
        let fpu = floatingPoint
        var list = [
            RegisterField("fcw", UInt64(fpu.controlWord), digits: 4),
            RegisterField("fsw", UInt64(fpu.statusWord), digits: 4),
            RegisterField("ftw", UInt64(fpu.tags), digits: 2), RegisterField("mxcsr", UInt64(fpu.mxcsr), digits: 8),
        ]
        func registers(_ name: String, _ bytes: [UInt8], each: Int) {
            for (index, start) in stride(from: 0, to: bytes.count, by: each).enumerated() {
                let value = RegisterText.bytes(bytes[start..<(start + each)].reversed())
                list.append(RegisterField("\(name)\(index)", text: "0x" + value))
            }
        }
        registers("st", fpu.st, each: 10)
        registers("xmm", fpu.xmm, each: 16)
        registers("ymmh", fpu.ymmHigh, each: 16)
        return list
    }

    private var eventFields: [RegisterField] {
        let list = RegisterText.events(events)
        return [RegisterField("events", text: list.isEmpty ? "none" : list.joined(separator: ", "))]
    }
}

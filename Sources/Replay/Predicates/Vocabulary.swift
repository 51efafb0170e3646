import Trace
import VMCore

/// The names that a predicate can use.
enum Vocabulary {
    /// How a register is read; most are in the part of the state that an engine hands out cheaply.
    enum Register: Sendable {
        case core(@Sendable (CoreRegisters) -> UInt64)
        case full(@Sendable (CPUState) -> UInt64)
    }

    /// What an event says of itself.
    enum Field: String, CaseIterable, Sendable {
        case number, kind, port, address, size, count, value, vector, rip, faulted
    }

    static let registers: [String: Register] = {
        var table: [String: Register] = [:]
        addGeneral(to: &table)
        addFlags(to: &table)
        addSegments(to: &table)
        table["cpl"] = .core { UInt64($0.cpl) }
        let control: [(String, any KeyPath<ControlRegisters, UInt64> & Sendable)] = [
            ("cr0", \.cr0), ("cr2", \.cr2), ("cr3", \.cr3), ("cr4", \.cr4), ("cr8", \.cr8), ("efer", \.efer),
            ("xcr0", \.xcr0),
        ]
        for (name, path) in control { table[name] = .core { $0.control[keyPath: path] } }
        for i in 0..<4 { table["dr\(i)"] = .full { $0.debug.address[i] } }
        table["dr6"] = .full { $0.debug.dr6 }
        table["dr7"] = .full { $0.debug.dr7 }
        for (i, name) in msrNames.enumerated() { table[name] = .full { $0.msrs[i] } }
        return table
    }()

    /// In the order of `CPUState.msrIndices`.
    static let msrNames = [
        "sysenter_cs", "sysenter_esp", "sysenter_eip", "pat", "star", "lstar", "cstar", "fmask", "kernel_gs_base",
        "tsc_aux",
    ]

    /// The general registers in the order in which instructions number them.
    static let general: [(name: String, path: any WritableKeyPath<GeneralRegisters, UInt64> & Sendable)] = [
        ("rax", \.rax), ("rcx", \.rcx), ("rdx", \.rdx), ("rbx", \.rbx), ("rsp", \.rsp), ("rbp", \.rbp), ("rsi", \.rsi),
        ("rdi", \.rdi), ("r8", \.r8), ("r9", \.r9), ("r10", \.r10), ("r11", \.r11), ("r12", \.r12), ("r13", \.r13),
        ("r14", \.r14), ("r15", \.r15),
    ]

    private static func addGeneral(to table: inout [String: Register]) {
        func add(
            _ name: String, _ path: any KeyPath<GeneralRegisters, UInt64> & Sendable, bits: UInt64, shift: UInt64 = 0
        ) {
            let mask = UInt64.max >> (64 - bits)
            table[name] = .core { $0.general[keyPath: path] >> shift & mask }
        }
        for (index, (name, path)) in general.enumerated() {
            add(name, path, bits: 64)
            let short = String(name.dropFirst())
            guard index < 8 else {
                add(name + "d", path, bits: 32)
                add(name + "w", path, bits: 16)
                add(name + "b", path, bits: 8)
                continue
            }
            add("e" + short, path, bits: 32)
            add(short, path, bits: 16)
            let letter = String(short.prefix(1))
            add(index < 4 ? letter + "l" : short + "l", path, bits: 8)
            if index < 4 { add(letter + "h", path, bits: 8, shift: 8) }
        }
        for (name, path) in [("ip", \GeneralRegisters.rip as any KeyPath & Sendable), ("flags", \.rflags)] {
            add("r" + name, path, bits: 64)
            add("e" + name, path, bits: 32)
            add(name, path, bits: 16)
        }
    }

    /// Bits of RFLAGS. Source: Intel SDM Vol. 1, figure 3-8.
    static let flags: [(name: String, bit: UInt64)] = [
        ("cf", 0), ("pf", 2), ("af", 4), ("zf", 6), ("sf", 7), ("tf", 8), ("if", 9), ("df", 10), ("of", 11), ("nt", 14),
        ("rf", 16), ("vm", 17), ("ac", 18), ("vif", 19), ("vip", 20), ("id", 21),
    ]

    private static func addFlags(to table: inout [String: Register]) {
        for (name, bit) in flags { table[name] = .core { $0.general.rflags >> bit & 1 } }
        table["iopl"] = .core { $0.general.rflags >> 12 & 3 }
    }

    static let segments: [(name: String, path: any KeyPath<CoreRegisters, SegmentRegister> & Sendable)] = [
        ("cs", \.cs), ("ds", \.ds), ("es", \.es), ("fs", \.fs), ("gs", \.gs), ("ss", \.ss), ("tr", \.tr),
        ("ldtr", \.ldtr),
    ]

    private static func addSegments(to table: inout [String: Register]) {
        for (name, path) in segments {
            table[name] = .core { UInt64($0[keyPath: path].selector) }
            table[name + ".base"] = .core { $0[keyPath: path].base }
            table[name + ".limit"] = .core { UInt64($0[keyPath: path].limit) }
            table[name + ".dpl"] = .core { UInt64($0[keyPath: path].dpl) }
        }
        table["gdtr.base"] = .core { $0.gdtr.base }
        table["gdtr.limit"] = .core { UInt64($0.gdtr.limit) }
        table["idtr.base"] = .core { $0.idtr.base }
        table["idtr.limit"] = .core { UInt64($0.idtr.limit) }
    }

    static let kinds = Dictionary(uniqueKeysWithValues: EventKind.allCases.map { ("\($0)", UInt64($0.rawValue)) })
}

extension TraceEvent {
    /// A field as a number; nil where an event of this kind has none.
    func field(_ field: Vocabulary.Field) -> UInt64? {
        let kind = identity.kind
        switch field {
        case .number: return kind.isExit ? exit.rawValue : nil
        case .kind: return UInt64(kind.rawValue)
        case .port: return kind == .portRead || kind == .portWrite ? identity.address : nil
        case .address: return identity.address
        case .size: return UInt64(identity.size)
        case .count: return UInt64(identity.count)
        case .value: return payload == nil && anchor == nil ? value : nil
        case .vector:
            return [.interruptAtExit, .interruptAtWindow, .interruptAtAnchor].contains(kind) ? identity.address : nil
        case .rip: return anchor?.rip
        case .faulted: return UInt64(identity.flags & EventIdentity.faulted)
        }
    }
}

import CKVM

/// One answer of the CPUID instruction.
public struct CPUIDEntry: Codable, Equatable, Sendable {
    public var leaf: UInt32
    /// Nil where the answer doesn't depend on ECX.
    public var subleaf: UInt32?
    public var eax: UInt32
    public var ebx: UInt32
    public var ecx: UInt32
    public var edx: UInt32

    public init(_ leaf: UInt32, subleaf: UInt32? = nil, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0,
                edx: UInt32 = 0) {
        self.leaf = leaf
        self.subleaf = subleaf
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx
    }

    init(_ entry: kvm_cpuid_entry2) {
        let indexed = entry.flags & 1 != 0  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        self.init(entry.function, subleaf: indexed ? entry.index : nil, eax: entry.eax, ebx: entry.ebx,
                  ecx: entry.ecx, edx: entry.edx)
    }

    var kvm: kvm_cpuid_entry2 {
        var entry = kvm_cpuid_entry2()
        entry.function = leaf
        entry.index = subleaf ?? 0
        entry.flags = subleaf == nil ? 0 : 1
        entry.eax = eax
        entry.ebx = ebx
        entry.ecx = ecx
        entry.edx = edx
        return entry
    }
}

/// How a guest sees time stamps.
public enum TimestampPolicy: String, Codable, CaseIterable, Sendable {
    /// CPUID offers no timestamp counter.
    case hide
    /// CPUID offers one, and each RDTSC and RDTSCP of the loaded kernel is replaced in place by a port read.
    case trap
    /// CPUID offers one and the guest reads the host's, unrecorded.
    case pass
    /// CPUID offers one, and the engine records each read: the soft engine alone can.
    case record
}

/// The processor that a guest sees: fixed for the life of a trace and stored in it.
public struct CPUModel: Codable, Equatable, Sendable {
    public var name: String
    public var entries: [CPUIDEntry]
    /// The ways of the processor on which the trace was recorded.
    public var profile = ProcessorProfile()

    private enum CodingKeys: CodingKey {
        case name, entries
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        name = try values.decode(String.self, forKey: .name)
        entries = try values.decode([CPUIDEntry].self, forKey: .entries)
        profile = try ProcessorProfile(from: decoder)
    }

    /// One object: traces have the profile's fields beside the others.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(name, forKey: .name)
        try values.encode(entries, forKey: .entries)
        try profile.encode(to: encoder)
    }

    /// The names that `--cpu` takes, with what each costs.
    public static let names: [(name: String, note: String)] = [
        ("auto", "the larger of v2 and v1 that the host has"),
        ("x86-64-v2", "SSE4.2, POPCNT, CMPXCHG16B; replays in every engine"),
        ("x86-64-v1", "SSE2 only: the widest choice of hosts"),
        ("x86-64-v3", "adds XSAVE, AVX, AVX2, BMI, FMA, MOVBE: replays only on hosts that have AVX, FMA and F16C"),
    ]

    private struct Feature {
        var name: String
        var leaf: UInt32
        var register: WritableKeyPath<CPUIDEntry, UInt32>
        var bit: Int

        init(_ name: String, _ leaf: UInt32, _ register: WritableKeyPath<CPUIDEntry, UInt32>, _ bit: Int) {
            self.name = name
            self.leaf = leaf
            self.register = register
            self.bit = bit
        }
    }

    // Source: Intel SDM Vol. 2A, CPUID; AMD APM Vol. 3, appendix E; x86-64 psABI 1.0, section 3.1.1 for the levels.
    private static var baseline: [Feature] {
        [
            ("fpu", 0), ("de", 2), ("pse", 3), ("msr", 5), ("pae", 6), ("cx8", 8), ("apic", 9), ("sep", 11), ("pge", 13),
            ("cmov", 15), ("pat", 16), ("clflush", 19), ("mmx", 23), ("fxsr", 24), ("sse", 25), ("sse2", 26),
        ].map { Feature($0.0, 1, \.edx, $0.1) } + [
            Feature("x2apic", 1, \.ecx, 21), Feature("syscall", 0x8000_0001, \.edx, 11),
            Feature("nx", 0x8000_0001, \.edx, 20), Feature("lm", 0x8000_0001, \.edx, 29),
        ]
    }

    private static var level2: [Feature] {
        [("sse3", 0), ("ssse3", 9), ("cx16", 13), ("sse4_1", 19), ("sse4_2", 20), ("popcnt", 23)]
            .map { Feature($0.0, 1, \.ecx, $0.1) } + [Feature("lahf_lm", 0x8000_0001, \.ecx, 0)]
    }

    private static var level3: [Feature] {
        [("fma", 12), ("movbe", 22), ("xsave", 26), ("avx", 28), ("f16c", 29)].map { Feature($0.0, 1, \.ecx, $0.1) }
            + [("bmi1", 3), ("avx2", 5), ("bmi2", 8)].map { Feature($0.0, 7, \.ebx, $0.1) }
            + [Feature("lzcnt", 0x8000_0001, \.ecx, 5)]
    }

    private static var timestamps: [Feature] {
        [Feature("tsc", 1, \.edx, 4), Feature("rdtscp", 0x8000_0001, \.edx, 27)]
    }

    /// Bits that KVM needn't list as supported: the monitor's devices provide the interrupt controller, and replaced
    /// instructions the counter.
    private static func provided(_ timestamps: TimestampPolicy) -> Set<String> {
        timestamps == .trap ? ["apic", "x2apic", "tsc", "rdtscp"] : ["apic", "x2apic"]
    }

    /// Makes the model `name` from what the host supports.
    ///
    /// - Throws: `HostError.missingFeatures` naming every feature the host lacks.
    public init(named name: String, timestamps: TimestampPolicy, supported: [CPUIDEntry]) throws(HostError) {
        if name == "auto" {
            do {
                self = try Self(named: "x86-64-v2", timestamps: timestamps, supported: supported)
            } catch {
                self = try Self(named: "x86-64-v1", timestamps: timestamps, supported: supported)
            }
            return
        }
        var features = Self.baseline
        if name != "x86-64-v1" { features += Self.level2 }
        if name == "x86-64-v3" { features += Self.level3 }
        if timestamps != .hide { features += Self.timestamps }

        func host(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> CPUIDEntry {
            supported.first { $0.leaf == leaf && ($0.subleaf ?? 0) == subleaf } ?? CPUIDEntry(leaf)
        }
        let provided = Self.provided(timestamps)
        let missing = features.filter {
            !provided.contains($0.name) && host($0.leaf)[keyPath: $0.register] >> $0.bit & 1 == 0
        }
        guard missing.isEmpty else { throw .missingFeatures(missing.map(\.name), model: name) }

        let vendor = host(0)
        let wide = name == "x86-64-v3"
        var one = CPUIDEntry(1, eax: 0x0006_0FB1, ebx: 0x0001_0800)
        one.ecx |= 1 << 31  // running under a hypervisor, which offers no leaves of its own
        var seven = CPUIDEntry(7, subleaf: 0)
        var extended = CPUIDEntry(0x8000_0001, eax: one.eax)
        for feature in features {
            switch feature.leaf {
            case 1: one[keyPath: feature.register] |= 1 << feature.bit
            case 7: seven[keyPath: feature.register] |= 1 << feature.bit
            default: extended[keyPath: feature.register] |= 1 << feature.bit
            }
        }
        if vendor.ebx == 0x6874_7541 { extended.edx |= one.edx & 0x0183_F3FF }  // AMD repeats leaf 1 there

        self.name = name
        entries = [
            CPUIDEntry(0, eax: wide ? 0xD : 7, ebx: vendor.ebx, ecx: vendor.ecx, edx: vendor.edx),
            one, seven,
        ]
        if wide {
            entries += [
                CPUIDEntry(0xD, subleaf: 0, eax: 7, ebx: UInt32(StateArea.ymm), ecx: UInt32(StateArea.bytes)),
                CPUIDEntry(0xD, subleaf: 1),
                CPUIDEntry(0xD, subleaf: 2, eax: 256, ebx: UInt32(StateArea.ymm)),
            ]
        }
        let brand = Array("vmrr \(name)".utf8)
        func word(_ i: Int) -> UInt32 {
            (0..<4).reduce(0) { $0 | (4 * i + $1 < brand.count ? UInt32(brand[4 * i + $1]) << (8 * $1) : 0) }
        }
        entries += [
            CPUIDEntry(0x8000_0000, eax: 0x8000_0008, ebx: vendor.ebx, ecx: vendor.ecx, edx: vendor.edx),
            extended,
            CPUIDEntry(0x8000_0002, eax: word(0), ebx: word(1), ecx: word(2), edx: word(3)),
            CPUIDEntry(0x8000_0003, eax: word(4), ebx: word(5), ecx: word(6), edx: word(7)),
            CPUIDEntry(0x8000_0004, eax: word(8), ebx: word(9), ecx: word(10), edx: word(11)),
            CPUIDEntry(0x8000_0008, eax: host(0x8000_0008).eax & 0xFF | 0x3000),
        ]
    }

    /// Checks that the host has every feature of a model that was made elsewhere.
    public func check(against supported: [CPUIDEntry], timestamps: TimestampPolicy) throws(HostError) {
        var missing: [String] = []
        let provided = Self.provided(timestamps)
        for feature in Self.baseline + Self.level2 + Self.level3 + Self.timestamps
        where !provided.contains(feature.name) {
            func has(_ entries: [CPUIDEntry]) -> Bool {
                entries.contains { $0.leaf == feature.leaf && ($0.subleaf ?? 0) == 0
                    && $0[keyPath: feature.register] >> feature.bit & 1 == 1 }
            }
            if has(entries), !has(supported) { missing.append(feature.name) }
        }
        guard missing.isEmpty else { throw .missingFeatures(missing, model: name) }
    }

    /// What CPUID answers, with what the processor answers in spite of the model.
    var answers: [CPUIDEntry] {
        guard let own = profile.ownFeatures else { return entries }
        return own + entries.filter { entry in !own.contains { $0.leaf == entry.leaf && ($0.subleaf ?? 0) == (entry.subleaf ?? 0) } }
    }

    /// Whether XSAVE and with it XCR0 and the upper halves of YMM registers belong to the state.
    public var hasXSave: Bool { entries.contains { $0.leaf == 1 && $0.ecx >> 26 & 1 == 1 } }

    /// The vendor string of leaf 0, such as `AuthenticAMD`.
    public var vendor: String {
        guard let zero = entries.first(where: { $0.leaf == 0 }) else { return "" }
        let bytes = [zero.ebx, zero.edx, zero.ecx].flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
        return String(decoding: bytes, as: UTF8.self)
    }
}

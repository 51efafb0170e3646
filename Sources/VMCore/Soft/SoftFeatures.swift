import CHostFloat

extension SoftEngine {
    /// The processor that the soft engine can be: x86-64-v2 and a timestamp counter, of a fixed make, so that a guest
    /// finds the same one on every host. Where the host has AVX, FMA and F16C, whose arithmetic is the host's, x86-64-v3 as well.
    public static let supportedFeatures = supportedFeatures(onHostWithAVX: host_float_has_avx() != 0)

    /// The processor that the soft engine can be on a host with AVX, FMA and F16C, or without one of them.
    ///
    /// Source: Intel SDM Vol. 2A, CPUID; AMD APM Vol. 3, appendix E.
    public static func supportedFeatures(onHostWithAVX isWide: Bool) -> [CPUIDEntry] {
        func bits(_ numbers: Int...) -> UInt32 { numbers.reduce(0) { $0 | 1 << $1 } }
        // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, x2APIC, POPCNT;
        // x87, DE, PSE, TSC, MSR, PAE, CMPXCHG8B, APIC, SYSENTER, PGE, CMOV, PAT, CLFLUSH, MMX, FXSR, SSE, SSE2
        var one = CPUIDEntry(1, ecx: bits(0, 9, 13, 19, 20, 21, 23),
                             edx: bits(0, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 19, 23, 24, 25, 26))
        var seven = CPUIDEntry(7, subleaf: 0)
        // LAHF in 64-bit mode; SYSCALL, NX, RDTSCP, long mode
        var extended = CPUIDEntry(0x8000_0001, ecx: bits(0), edx: bits(11, 20, 27, 29))
        if isWide {
            one.ecx |= bits(12, 22, 26, 28, 29)  // FMA, MOVBE, XSAVE, AVX, F16C
            seven.ebx |= bits(3, 5, 8)  // BMI1, AVX2, BMI2
            extended.ecx |= bits(5)  // LZCNT
        }
        return [
            CPUIDEntry(0, eax: 7, ebx: 0x6874_7541, ecx: 0x444D_4163, edx: 0x6974_6E65),  // AuthenticAMD
            one, seven, extended,
            // 40 bits of physical and 48 of linear addresses: every x86-64 server has these
            CPUIDEntry(0x8000_0008, eax: 0x3028),
        ]
    }
}

import java.io.FileInputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.Collections;
import javax.net.ssl.X509TrustManager;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

/** SERVER CA LABEL DEVICE TOKEN_FILE: enroll with BouncyCastle's stock client; "-" for no token. */
public class EstEnroll {
    public static void main(String[] args) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        X509Certificate ca;
        try (FileInputStream in = new FileInputStream(args[1])) {
            ca = (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
        X509TrustManager[] trust =
            JcaJceUtils.getCertPathTrustManager(Collections.singleton(new TrustAnchor(ca, null)), null);
        ESTService service = new JsseESTServiceBuilder(args[0], trust[0])
            .withHostNameAuthorizer(new JsseDefaultHostnameAuthorizer(Collections.<String>emptySet()))
            .withLabel(args[2])
            .build();
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC", "BC");
        generator.initialize(256);
        KeyPair pair = generator.generateKeyPair();
        ESTAuth auth = null;
        if (!args[4].equals("-")) {
            String token = Files.readString(Path.of(args[4])).trim();
            auth = new JcaHttpAuthBuilder(args[3], token.toCharArray()).setProvider("BC").build();
        }
        EnrollmentResponse response = service.simpleEnroll(
            false,
            new JcaPKCS10CertificationRequestBuilder(new X500Name("CN=" + args[3]), pair.getPublic())
                .build(new JcaContentSignerBuilder("SHA256withECDSA").setProvider("BC").build(pair.getPrivate())),
            auth);
        while (!response.isCompleted()) {
            System.out.println("pending");
            Thread.sleep(Math.max(0, response.getNotBefore() - System.currentTimeMillis()));
            response = service.simpleEnroll(response);
        }
        response.getStore().getMatches(null).forEach(
            issued -> System.out.println("issued " + issued.getSubject() + " " + issued.getSerialNumber().toString(16)));
    }
}
